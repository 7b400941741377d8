import { type Command, Option } from "commander";
import { type BackupResult, backup } from "../../src/backup/backup.js";
import { LEVELS, type Level } from "../../src/backup/level.js";
import { Virsh } from "../../src/backup/libvirt/virsh.js";
import {
  type CopyOptions,
  compressOf,
  digestsOf,
  rateLimitOf,
  windowOf,
  withCopy,
  withDigests,
} from "../options.js";
import { human } from "../output.js";
import type { Context, Run } from "../run.js";
import { version } from "../version.js";

interface BackupOptions extends CopyOptions {
  readonly to: string;
  readonly level: Level;
  readonly include: readonly string[];
  readonly exclude: readonly string[];
  readonly scratch: string;
  readonly connect?: string;
}

const SCRATCH_PARENT = "/var/tmp";

export function addBackup(program: Command, run: Run): void {
  const command = program
    .command("backup")
    .description("back a running libvirt domain up: begin a job, pull it as one restore point, end the job")
    .argument("<domain>", "the domain, as virsh knows it")
    .requiredOption("--to <repo>", "the repository; made if the folder is empty or not there")
    .addOption(
      new Option("--level <level>", "what to take; auto is incremental where that is possible")
        .choices([...LEVELS])
        .default("auto"),
    )
    .option("--include <disk>", "only this disk; may be given several times", collect, [])
    .option("--exclude <disk>", "not this disk; may be given several times", collect, [])
    .option("--scratch <dir>", "where the job's folder is made, for socket and scratch files", SCRATCH_PARENT)
    .option("--connect <uri>", "libvirt connection, as virsh -c");
  withDigests(withCopy(command), "default xxh64").action(
    run<BackupOptions, [domain: string]>(async (context, options, domain) => {
      const result = await backUp(context, options, domain);
      context.output.result(describe(result, options, context.output.warnings), sentence(result));
    }),
  );
}

async function backUp(
  { output, signal }: Context,
  options: BackupOptions,
  domain: string,
): Promise<BackupResult> {
  const format = options.format ?? "qcow2";
  const compress = compressOf(options, format);
  const progress = await output.progress();
  try {
    return await backup({
      virsh: new Virsh({ signal, connect: options.connect }),
      domain,
      repositoryPath: options.to,
      level: options.level,
      disks: { include: options.include, exclude: options.exclude },
      scratchParent: options.scratch,
      format,
      digests: digestsOf(options, "xxh64"),
      compress,
      sync: options.fsync,
      tool: `nbdpull ${version()}`,
      connect: {},
      window: windowOf(options),
      rateLimit: rateLimitOf(options),
      signal,
      onProgress: (disk, p) => progress.update(disk, p.position, p.virtualSize, p.readBytes),
      onWarning: (message) => output.warn(message),
    });
  } finally {
    progress.stop();
  }
}

function describe(result: BackupResult, options: BackupOptions, warnings: readonly string[]): object {
  const { manifest, folder, extents, requests, connections, seconds, level, retired } = result;
  return {
    id: manifest.id,
    domain: manifest.domain.name,
    level,
    levelAsked: options.level,
    checkpoint: manifest.checkpoint?.name ?? null,
    createdAt: manifest.createdAt,
    folder,
    disks: manifest.disks,
    extents,
    requests,
    connections,
    seconds,
    retiredCheckpoints: retired,
    warnings,
  };
}

/** What was done, and why. */
function sentence({ manifest, level, seconds, retired }: BackupResult): string {
  const disks = manifest.disks.map((disk) => {
    const what = disk.parent === null ? "full" : `${human(disk.dirtyBytes)} changed since ${disk.parent}`;
    const why = disk.reason === undefined ? "" : ` (${disk.reason})`;
    return `  ${disk.name}: ${human(disk.virtualSize)}, ${what}${why}, ${human(disk.storedBytes)} stored`;
  });
  const next =
    manifest.checkpoint === null
      ? "no checkpoint: no base for increments"
      : `checkpoint ${manifest.checkpoint.name}`;
  const gone = retired.length === 0 ? "" : `, ${retired.length} older deleted`;
  return [
    `${manifest.domain.name} ${manifest.id}: ${level} restore point in ${seconds.toFixed(2)} s; ${next}${gone}`,
    ...disks,
  ].join("\n");
}

function collect(value: string, before: readonly string[]): readonly string[] {
  return [...before, value];
}
