import { join, resolve } from "node:path";
import { BackupError, UsageError } from "../../src/backup/base/errors.js";
import { chooseDomain } from "../../src/backup/repository/choose-domain.js";
import { chooseDisks, choosePoint } from "../../src/backup/repository/choose-point.js";
import { bootFilesOf } from "../../src/backup/repository/kept-files.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { withRestorable } from "../../src/backup/repository/points-without-damage.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { BlockTarget } from "../../src/backup/restore/block-target.js";
import type { ExportTarget } from "../../src/backup/restore/export-target.js";
import { originalFormats } from "../../src/backup/restore/original-formats.js";
import { type RestoredDisk, refuseInside, restore } from "../../src/backup/restore/restore.js";
import type { RestoredDefinition } from "../../src/backup/restore/restored-definition.js";
import { type FileTarget, RestoredFiles, without } from "../../src/backup/restore/restored-files.js";
import { adaptedLines } from "../adapted-lines.js";
import { type Destination, destinationOf, inFolder } from "../destination.js";
import type { WhoseOptions } from "../domain-options.js";
import { EXIT, InterruptedError } from "../exit-codes.js";
import { assertLive, type LiveOptions } from "../live-options.js";
import { collectSoon } from "../optimize-later.js";
import { connectOf, formatOf, rateLimitOf, windowOf } from "../option-values.js";
import type { CopyOptions, NetworkOptions, TrustOptions } from "../options.js";
import { human, type Progress } from "../output.js";
import type { Context } from "../run.js";
import { requireTrust, warnOfStrangers } from "../trust.js";

interface RestoreOptions extends CopyOptions, NetworkOptions, TrustOptions, WhoseOptions, LiveOptions {
  readonly at: string;
  readonly disk?: string[];
}

/** What is restored, and from where. */
interface Job {
  readonly repository: Repository;
  readonly domain: string;
  readonly point: Manifest;
  readonly disks: readonly string[];
  readonly options: RestoreOptions;
  readonly context: Context;
  readonly progress: Progress;
}

export async function runRestore(
  context: Context,
  options: RestoreOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  if (options.keepIdentity && !isDefinitionWanted(options)) {
    throw new UsageError("E_DEFINE", "--keep-identity is about a definition: give --define or --xml too");
  }
  if (options.adapt && options.define === undefined) {
    throw new UsageError("E_DEFINE", "--adapt asks libvirt what this host has not: give --define too");
  }
  assertLive(options);
  if (!options.live) collectSoon();
  const repository = await Repository.open(path, {
    trusted: options.trustRepository,
    signal: context.signal,
  });
  const domain = await chooseDomain(repository, wanted, options);
  if (isDefinitionWanted(options)) await requireTrust(path, [domain], options, context.output);
  else if (!options.trustRepository) await warnOfStrangers(path, [domain], context.output);
  const read = async (): Promise<void> => {
    const choose = async () => {
      const point = await choosePoint(repository, domain, options.at, options.uuid).catch(
        async (error: unknown) => {
          throw await withRestorable(error, repository, domain, options.disk);
        },
      );
      return { point, disks: chooseDisks(point, options.disk) };
    };
    if (options.live) {
      const { runLive } = await import("./restore-live.js");
      // The disks have readings of their own. This one would end in an error if another point went meanwhile.
      const chooseWhole = async () => await repository.reading(domain, choose, context.signal);
      return await runLive(context, options, { repository, domain, choose: chooseWhole });
    }
    const { point, disks } = await choose();
    const originals = await originalFormats(repository, domain, point);
    const destination = await destinationOf(repository, options, originals);
    const progress = await context.output.progress();
    try {
      await restoreTo(destination, { repository, domain, point, disks, options, context, progress });
    } finally {
      progress.stop();
    }
  };
  if (options.live) await read();
  else await repository.reading(domain, read, context.signal);
}

async function restoreTo(destination: Destination, job: Job): Promise<void> {
  if (job.options.salvage) {
    if (destination.kind !== "files" || isDefinitionWanted(job.options)) {
      const next =
        destination.kind === "files"
          ? `restore${without(askedOf(job.options))}`
          : `name a folder or a file${isDefinitionWanted(job.options) ? `, and restore${without(askedOf(job.options))}` : ""}`;
      throw new UsageError("E_USAGE", `--salvage writes files of disks alone: ${next}`);
    }
    const { folder, make } = destination;
    if (!make) return await salvageToFiles(destination, job);
    return await inFolder(folder, { forDomain: false }, () => salvageToFiles(destination, job));
  }
  switch (destination.kind) {
    case "files":
      if (destination.make) {
        const forDomain = isDefinitionWanted(job.options);
        await inFolder(destination.folder, { forDomain }, () => restoreToFiles(destination, job));
      } else await restoreToFiles(destination, job);
      return;
    case "device":
      await restoreToTarget(destination, job, () => openDeviceTarget(destination.name, job));
      return;
    case "export":
      await restoreToTarget(destination, job, () => openExportTarget(destination.name, job));
      return;
    default:
      destination satisfies never;
  }
}

/** @throws {UsageError} `E_USAGE`: options that make no sense for what may be incomplete */
async function salvageToFiles(
  { pathOf }: Extract<Destination, { kind: "files" }>,
  { repository, domain, point, disks, options, context, progress }: Job,
): Promise<void> {
  const { salvage } = await import("../../src/backup/restore/salvage.js");
  const { output } = context;
  const targets = disks.map((disk) => {
    const path = pathOf(disk);
    return { disk, path, format: formatOf(path, options.format) };
  });
  const salvaged = await salvage({
    ...{ repository, domain, point, targets, signal: context.signal },
    ...{ force: options.force ?? false, sync: options.fsync, window: windowOf(options) },
    rateLimit: rateLimitOf(options),
    onProgress: (disk, p) => progress.update(disk, p.position, p.virtualSize, p.readBytes),
  });
  const lines = salvaged.flatMap(({ disk, path, virtualSize, lostBytes, lost }) => [
    `${path}: ${disk} of ${point.id}, ${human(virtualSize)}, ${lostBytes === 0 ? "nothing lost" : `${human(lostBytes)} LOST, which are zeroes there`}`,
    ...lost.map(
      (extent) =>
        `    guest offset ${extent.offset}, ${extent.length} bytes, by point ${extent.point}: ${extent.message}`,
    ),
  ]);
  output.result({ domain, uuid: point.domain.uuid, point: point.id, salvaged }, lines);
  if (salvaged.some(({ lostBytes }) => lostBytes > 0)) process.exitCode = EXIT.damaged;
}

async function restoreToFiles(
  { folder, make: isFolder, pathOf }: Extract<Destination, { kind: "files" }>,
  job: Job,
): Promise<void> {
  const { options, disks, progress } = job;
  const targets = disks.map((disk) => {
    const path = pathOf(disk);
    return { disk, path, format: formatOf(path, options.format) };
  });
  const places = targets.map(({ disk, path, format }) => ({ disk, kind: "file" as const, path, format }));
  const definition = await prepareDefinition(job, places, { folder, filesIn: isFolder ? folder : undefined });
  // With --disk, boot files are restored only if a definition needs them.
  const withFiles = isFolder && options.disk === undefined;
  const plain = withFiles ? bootFilesOf(job.point) : [];
  await using files = await stageFiles(
    job,
    definition?.files ?? plain.map((file) => ({ file, path: join(folder, file.file) })),
  );
  const restored = await restore({
    ...commonOptions(job),
    targets,
    force: options.force ?? false,
    onProgress: (disk, p) => progress.update(disk, p.position, p.virtualSize, p.readBytes),
  });
  await conclude(job, restored, files, definition);
}

async function restoreToTarget(
  { kind, name, disk }: Extract<Destination, { kind: "device" | "export" }>,
  job: Job,
  open: () => Promise<BlockTarget>,
): Promise<void> {
  const { context, options, progress } = job;
  if (kind === "export" && isDefinitionWanted(options)) {
    const message = `a definition names files and block devices, not ${name}: restore to one of those, or${without(askedOf(options))}`;
    throw new UsageError("E_DEFINE", message);
  }
  const places = [{ disk, kind: "block" as const, path: name, format: "raw" as const }];
  const definition = await prepareDefinition(job, places, undefined);
  await using files = await stageFiles(job, definition?.files ?? []);
  await using target = await open();
  const { restoreOver } = await import("../../src/backup/restore/restore-over.js");
  try {
    const restored = await restoreOver({
      ...commonOptions(job),
      disk,
      target,
      onProgress: (p) => progress.update(disk, p.position, p.virtualSize, p.readBytes),
    });
    const behind = restored.targetSize - restored.virtualSize;
    if (behind > 0) context.output.note(`${name} is larger: its last ${behind} bytes stay as they were`);
    await conclude(job, [restored], files, definition);
  } catch (error) {
    throw interruptedHalfWay(context.signal.reason, error, name);
  }
}

/** An interrupted restore onto a device or export can't be undone: the error says that it is half-written. */
function interruptedHalfWay(reason: unknown, error: unknown, target: string): unknown {
  const isHalf = error instanceof BackupError && error.details["halfWritten"] === true;
  if (!isHalf || !(reason instanceof InterruptedError)) return error;
  return reason.leaving(`${target} is half-written. Restore to it again before anything uses it`);
}

// Loaded only if needed: loading takes as long as restoring half a GiB.

async function openDeviceTarget(path: string, { repository }: Job): Promise<BlockTarget> {
  const { DeviceTarget } = await import("../../src/backup/restore/device-target.js");
  const target = await DeviceTarget.open(path);
  try {
    if (target.backingFile !== undefined) await refuseInside(repository, target.backingFile);
    return target;
  } catch (error) {
    await target[Symbol.asyncDispose]();
    throw error;
  }
}

async function openExportTarget(uri: string, { options, context }: Job): Promise<ExportTarget> {
  const { ExportTarget } = await import("../../src/backup/restore/export-target.js");
  const { signal: _, ...connect } = await connectOf(options, context.signal);
  const target = await ExportTarget.open(uri, uri, { ...connect, signal: context.signal });
  if (options.fsync && !target.canFlush) {
    context.output.warn(`${uri} has no FLUSH: when the bytes reach stable storage is up to its server`);
  }
  return target;
}

async function stageFiles(
  { repository, domain, point, options, context }: Job,
  targets: readonly FileTarget[],
): Promise<RestoredFiles> {
  return await RestoredFiles.stage({
    repository,
    domain,
    point,
    targets,
    force: options.force ?? false,
    sync: options.fsync,
    asked: askedOf(options),
    signal: context.signal,
  });
}

function commonOptions({ repository, domain, point, options, context }: Job) {
  return {
    repository,
    domain,
    point,
    sync: options.fsync,
    window: windowOf(options),
    rateLimit: rateLimitOf(options),
    signal: context.signal,
  };
}

function isDefinitionWanted({ define, xml }: RestoreOptions): boolean {
  return define !== undefined || xml !== undefined;
}

/** The options that are about the domain, for messages. */
function askedOf({ define, keepIdentity, adapt, xml }: RestoreOptions): string[] {
  return [
    ...(define === undefined ? [] : ["--define"]),
    ...(keepIdentity ? ["--keep-identity"] : []),
    ...(adapt ? ["--adapt"] : []),
    ...(xml === undefined ? [] : ["--xml"]),
  ];
}

/** @param beside folder of the definition by default, and of the files that keep their own names */
async function prepareDefinition(
  { repository, domain, point, options, context }: Job,
  places: readonly {
    readonly disk: string;
    readonly kind: "file" | "block";
    readonly path: string;
    readonly format: "qcow2" | "raw";
  }[],
  beside: { readonly folder: string; readonly filesIn: string | undefined } | undefined,
): Promise<RestoredDefinition | undefined> {
  if (!isDefinitionWanted(options)) return undefined;
  const { define, xml, connect } = options;
  const place = xml === undefined ? beside && { folder: beside.folder } : { file: xml };
  if (place === undefined) {
    throw new UsageError(
      "E_DEFINE",
      "a block device has no place for a definition: name one with --xml FILE",
    );
  }
  const { RestoredDefinition } = await import("../../src/backup/restore/restored-definition.js");
  const { Libvirt } = await import("../../src/backup/libvirt/libvirt.js");
  return await RestoredDefinition.prepare({
    repository,
    domain,
    point,
    filesIn: beside?.filesIn,
    name: define || undefined,
    keepIdentity: options.keepIdentity ?? false,
    place,
    disks: new Map(places.map(({ disk, path, ...rest }) => [disk, { ...rest, path: resolve(path) }])),
    libvirt: define === undefined ? undefined : new Libvirt({ connect, signal: context.signal }),
    trusted: options.trustDefinition ?? false,
    adapt: options.adapt ?? false,
    asked: askedOf(options),
    force: options.force ?? false,
    sync: options.fsync,
  });
}

async function conclude(
  { domain, point, options, context: { output } }: Job,
  restored: readonly RestoredDisk[],
  files: RestoredFiles,
  definition: RestoredDefinition | undefined,
): Promise<void> {
  for (const { disk, checked } of restored) {
    if (!checked) output.warn(`${disk}: a layer has no digests, so its data was copied unproven`);
  }
  await files.publish();
  await definition?.apply();
  for (const warning of definition?.warnings ?? []) output.warn(`${definition?.name}: ${warning}`);
  const lines = restored.map(
    (r) =>
      `${r.path}: ${r.disk} of ${point.id}, ${human(r.virtualSize)}, ${human(r.readBytes)} read from ${r.chain.length} ${r.chain.length === 1 ? "point" : "points"}${assuranceText(r)}, in ${r.seconds.toFixed(2)} s`,
  );
  for (const { path, file } of files.targets) lines.push(`${path}: ${file.role} of ${point.id}`);
  const defined = options.define !== undefined;
  if (definition) {
    const { name, networks, adapted } = definition;
    lines.push(...adaptedLines(name, adapted));
    if (networks.length > 0) lines.push(`${name}: its network cards are on ${networks.join(", ")}`);
    lines.push(`${definition.xmlPath}: ${definition.name}${defined ? ", defined in libvirt" : ""}`);
  }
  const told = definition && {
    definition: {
      ...{ domain: definition.name, uuid: definition.uuid, xml: definition.xmlPath, defined },
      adapted: definition.adapted,
    },
  };
  const bootFiles = files.targets.map(({ path, file }) => ({ role: file.role, path }));
  output.result(
    { domain, uuid: point.domain.uuid, point: point.id, disks: restored, files: bootFiles, ...told },
    lines,
  );
}

/**
 * The end of a clause about data that was read. A checksum proves nothing where somebody may have forged it.
 */
function assuranceText({ checked, proven }: RestoredDisk): string {
  if (proven) return " and proven";
  return checked ? ", matches its checksum" : "";
}
