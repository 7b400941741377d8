import type { Command } from "commander";
import type { DamageError } from "../../src/backup/base/errors.js";
import { chooseDomain } from "../../src/backup/repository/choose-point.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { EXIT } from "../exit-codes.js";
import { keptLines } from "../kept-lines.js";
import { human } from "../output.js";
import type { Run } from "../run.js";
import { warnOfStrangers } from "../trust.js";

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
          await warnOfStrangers(path, domains, output);
          const points: Manifest[] = [];
          const lines: string[] = [];
          const onDamage = (error: DamageError): void => {
            output.warn(error.message);
            process.exitCode = EXIT.damaged;
          };
          for (const name of domains) {
            const read = (): Promise<Manifest[]> => repository.points(name, onDamage);
            const ofDomain = await repository.reading(name, read, signal);
            points.push(...ofDomain);
            if (ofDomain.length > 0) lines.push(...asText(name, ofDomain));
          }
          output.result(points.map(asJson), lines.length > 0 ? lines : ["no restore points yet"]);
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

function asText(domain: string, points: readonly Manifest[]): string[] {
  return [...points.flatMap(linesOf), summary(domain, points)];
}

function linesOf(point: Manifest): string[] {
  const base = point.checkpoint ? `checkpoint ${point.checkpoint.name}` : "no base for increments";
  return [
    `${point.domain.name}  ${point.id}  ${localTime(point.createdAt)}  ${point.level}  ${base}`,
    ...point.disks.map((disk) => {
      const what = disk.parent === null ? "full" : `${human(disk.dirtyBytes)} changed since ${disk.parent}`;
      const why = disk.reason === undefined ? "" : ` (${disk.reason})`;
      return `    ${disk.name}  ${human(disk.virtualSize)}, ${what}, ${human(disk.storedBytes)} stored${why}`;
    }),
    ...keptLines(point).map((line) => `    ${line}`),
  ];
}

/** @param points of one domain, oldest first */
function summary(domain: string, points: readonly Manifest[]): string {
  const stored = points.flatMap(({ disks }) => disks).reduce((total, disk) => total + disk.storedBytes, 0);
  const needed = neededBy(points.at(-1), points).size;
  const count = points.length === 1 ? "1 point" : `${points.length} points`;
  return `${domain}: ${count}, ${human(stored)} stored; the newest is based on ${needed - 1} of the others`;
}

/** The ids of a point and of all points that its disks depend on, as far as known. */
function neededBy(point: Manifest | undefined, points: readonly Manifest[]): ReadonlySet<string> {
  const needed = new Set<string>();
  for (const { name } of point?.disks ?? []) {
    for (let link = point; link; ) {
      needed.add(link.id);
      const { id, disks } = link;
      const parent = disks.find((disk) => disk.name === name)?.parent;
      // Parents are older, even if a damaged manifest claims otherwise.
      link = points.find((point) => point.id === parent && point.id < id);
    }
  }
  return needed;
}

/** Local time, such as `2026-11-20 16:22:16`. */
function localTime(iso: string): string {
  return new Date(iso).toLocaleString("sv-SE");
}
