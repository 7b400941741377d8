import type { Command } from "commander";
import { chooseDomain } from "../../src/backup/chain.js";
import type { DamageError } from "../../src/backup/errors.js";
import type { Manifest } from "../../src/backup/manifest.js";
import { Repository } from "../../src/backup/repository.js";
import { EXIT } from "../exit-codes.js";
import { keptLines } from "../kept-lines.js";
import { human } from "../output.js";
import type { Run } from "../run.js";

export function addPoints(program: Command, run: Run): void {
  program
    .command("points")
    .description("the restore points of a repository, oldest first, and how they hang together")
    .argument("<repo>")
    .argument("[domain]")
    .action(
      run<object, [repo: string, domain: string | undefined]>(
        async ({ output, signal }, _options, path, domain) => {
          const repository = await Repository.open(path);
          const domains =
            domain === undefined ? await repository.domains() : [await chooseDomain(repository, domain)];
          const points: Manifest[] = [];
          const onDamage = (error: DamageError): void => {
            output.warn(error.message);
            process.exitCode = EXIT.damaged;
          };
          for (const name of domains) {
            const read = (): Promise<Manifest[]> => repository.points(name, onDamage);
            points.push(...(await repository.reading(name, read, signal)));
          }
          output.result(points.map(asJson), points.length === 0 ? "no restore points yet" : asText(points));
        },
      ),
    );
}

function asJson(point: Manifest): Record<string, unknown> {
  return {
    id: point.id,
    domain: point.domain.name,
    level: point.level,
    checkpoint: point.checkpoint?.name ?? null,
    createdAt: point.createdAt,
    disks: point.disks.map((disk) => ({
      name: disk.name,
      mode: disk.mode,
      ...(disk.reason === undefined ? {} : { reason: disk.reason }),
      parent: disk.parent,
      file: disk.file,
      format: disk.format,
      virtualSize: disk.virtualSize,
      dirtyBytes: disk.dirtyBytes,
      storedBytes: disk.storedBytes,
    })),
    ...(point.files ? { files: point.files } : {}),
    ...(point.notKept ? { notKept: point.notKept } : {}),
  };
}

function asText(points: readonly Manifest[]): string {
  return points
    .flatMap((point) => [
      `${point.domain.name}  ${point.id}  ${point.level}${point.checkpoint ? `  checkpoint ${point.checkpoint.name}` : "  no base for increments"}`,
      ...point.disks.map((disk) => {
        const what = disk.parent === null ? "full" : `${human(disk.dirtyBytes)} changed since ${disk.parent}`;
        const why = disk.reason === undefined ? "" : ` (${disk.reason})`;
        return `    ${disk.name}  ${human(disk.virtualSize)}, ${what}, ${human(disk.storedBytes)} stored${why}`;
      }),
      ...keptLines(point).map((line) => `    ${line}`),
    ])
    .join("\n");
}
