import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Command } from "commander";
import { chooseDomain, choosePoint } from "../../src/backup/chain.js";
import { UsageError } from "../../src/backup/errors.js";
import type { ImageFormat } from "../../src/backup/image/create.js";
import { Repository } from "../../src/backup/repository.js";
import { refuseInside, restore } from "../../src/backup/restore.js";
import { type CopyOptions, formatOf, rateLimitOf, windowOf, withCopy } from "../options.js";
import { human } from "../output.js";
import type { Run } from "../run.js";

interface RestoreOptions extends CopyOptions {
  readonly at: string;
  readonly disk?: string[];
  readonly to: string;
  readonly force?: true;
}

export function addRestore(program: Command, run: Run): void {
  const command = program
    .command("restore")
    .description("rebuild the disks of a point in time; nothing gets its name before every byte was proven")
    .argument("<repo>")
    .argument("[domain]")
    .option("--at <point>", "a point's id, a time (the newest point not after it), or latest", "latest")
    .option("--disk <name>", "only this disk; may be given several times", (name, before: string[] = []) => [
      ...before,
      name,
    ])
    .requiredOption("--to <target>", "a folder for vda.raw and so on; with one --disk a file, too")
    .option("--force", "replace files that exist");
  withCopy(command).action(
    run<RestoreOptions, [repo: string, domain: string | undefined]>(
      async ({ output, signal }, options, path, wanted) => {
        const repository = await Repository.open(path);
        const domain = await chooseDomain(repository, wanted);
        const read = async (): Promise<void> => {
          const point = await choosePoint(repository, domain, options.at);
          const names = chooseDisks(
            point.disks.map((disk) => disk.name),
            options.disk,
            point.id,
          );
          const targetOf = await targets(repository, options.to, options.disk, options.format);
          const progress = await output.progress();
          try {
            const restored = await restore({
              repository,
              domain,
              point,
              targets: names.map((disk) => {
                const target = targetOf(disk);
                return { disk, path: target, format: formatOf(target, options.format) };
              }),
              force: options.force ?? false,
              sync: options.fsync,
              window: windowOf(options),
              rateLimit: rateLimitOf(options),
              signal,
              onProgress: (disk, p) => progress.update(disk, p.position, p.virtualSize, p.readBytes),
            });
            for (const { disk, proven } of restored) {
              if (!proven) output.warn(`${disk}: a layer has no digests, so its data was copied unproven`);
            }
            output.result(
              { domain, point: point.id, disks: restored },
              restored
                .map(
                  (r) =>
                    `${r.path}: ${r.disk} of ${point.id}, ${human(r.virtualSize)}, ${human(r.readBytes)} read from ${r.chain.length} points${r.proven ? " and proven" : ""}, in ${r.seconds.toFixed(2)} s`,
                )
                .join("\n"),
            );
          } finally {
            progress.stop();
          }
        };
        await repository.reading(domain, read, signal);
      },
    ),
  );
}

function chooseDisks(
  present: readonly string[],
  wanted: readonly string[] | undefined,
  point: string,
): readonly string[] {
  if (!wanted) return present;
  for (const name of wanted) {
    if (!present.includes(name)) {
      throw new UsageError("E_NO_DISK", `point ${point} has no disk ${name}: it has ${present.join(", ")}`);
    }
  }
  return [...new Set(wanted)];
}

/** With one `--disk` a file, unless a folder is there already; else a folder that gets one file a disk. */
async function targets(
  repository: Repository,
  to: string,
  wanted: readonly string[] | undefined,
  format: ImageFormat | undefined,
): Promise<(disk: string) => string> {
  if (/^nbds?(\+\w+)?:\/\//.test(to)) {
    throw new UsageError(
      "E_TARGET",
      `${to}: restore writes files; restore to a file, then copy it there with qemu-img convert -n`,
    );
  }
  await refuseInside(repository, to);
  const found = await stat(to).catch(() => undefined);
  if (found && !found.isDirectory() && !found.isFile()) {
    throw new UsageError(
      "E_TARGET",
      `${to} is neither a file nor a folder: restore to a file, then copy it there`,
    );
  }
  const isFolder = found?.isDirectory() ?? wanted?.length !== 1;
  if (!isFolder && wanted?.length !== 1) {
    throw new UsageError("E_TARGET", `${to} is a file: name a folder for all disks, or one --disk`);
  }
  if (!isFolder) return () => to;
  await mkdir(to, { recursive: true });
  return (disk) => join(to, `${disk}.${format ?? "raw"}`);
}
