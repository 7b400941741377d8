/**
 * The take room makes restore points. Every way to get one ends in `takePoint` below: it copies all disks of
 * one moment into a pending point of the repository, writes the manifest and commits, or leaves nothing
 * behind.
 *
 * Read this file first, then backup.ts (`nbdpull backup` of a running domain: begins the job, pulls, ends the
 * job). stopped-backup.ts is for domains that are off, attach.ts for jobs that another program began, and
 * import.ts with foreign-image.ts for existing image files. pull-file.ts alone has no repository: it pulls
 * one export into a file. This room never changes or deletes an existing point, and never commits only some
 * of the disks.
 */

import type { ConnectOptions, NbdAddress, NbdClient } from "../../nbd/index.js";
import { BackupError, PreconditionError, UsageError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { CompressThreads } from "../compress/compress-threads.js";
import { DEFAULT_DIGESTS, type DigestAlgorithm } from "../digest/digest.js";
import { DigestThreads } from "../digest/digest-threads.js";
import { openExport } from "../export/open-export.js";
import { diskIdentities } from "../guest/disk-identity.js";
import { type Definition, keepFiles } from "../guest/keep-files.js";
import { sha256OfFile } from "../host/held-folder.js";
import type { ImageFormat } from "../image/image.js";
import { assertCompressible, BUFFER_BYTES, type ImageCompression } from "../pull/compressed-store.js";
import {
  type CopyImageOptions,
  copyImage,
  type DiskSource,
  type PullProgress,
  type PullResult,
  pullImage,
} from "../pull/pull-image.js";
import type { RateLimit } from "../pull/rate-limit.js";
import type { Window } from "../pull/window.js";
import type { CompressionMethod } from "../qcow2/compress-cluster.js";
import type { Backing } from "../qcow2/writer.js";
import { domainFolder, firstPointNotices } from "../repository/domain-folder.js";
import {
  type DiskIdentity,
  type DiskManifest,
  diskOf,
  isDiskName,
  isSame,
  MANIFEST_VERSION,
  type Manifest,
} from "../repository/manifest.js";
import type { PendingPoint } from "../repository/pending-point.js";
import { uuidOf } from "../repository/point-owners.js";
import type { Repository } from "../repository/repository.js";
import { type DiskProof, type ProveSettings, proveDisk } from "./prove-disk.js";

/** A disk to take into a point. */
export type PointDisk = ExportedPointDisk | ImportedPointDisk;

interface AnyPointDisk {
  /** The disk's target in the domain, for example `vda`. */
  readonly name: string;
  /** Why the disk is full although an increment might have been expected. */
  readonly reason?: string | undefined;
}

/** A disk that a server exports. */
export interface ExportedPointDisk extends AnyPointDisk {
  readonly address: NbdAddress;
  /** Take only what changed since the point `parent`. Undefined: a full copy. */
  readonly increment?: { readonly bitmap: string; readonly parent: Manifest } | undefined;
}

/** A disk that exists as a full image. The caller closes `source`. */
export interface ImportedPointDisk extends AnyPointDisk {
  readonly source: DiskSource;
  readonly address?: undefined;
  readonly increment?: undefined;
}

export interface TakePointOptions {
  readonly repository: Repository;
  readonly domain: { readonly name: string; readonly uuid: string | null };
  readonly disks: readonly PointDisk[];
  readonly checkpoint: Manifest["checkpoint"];
  /** Stored besides the disks, with the files that the domain starts with. */
  readonly definition?: Definition | undefined;
  readonly format: ImageFormat;
  /** Undefined: no digests. */
  readonly digests: DigestAlgorithm | undefined;
  /** qcow2 only: compress every cluster that shrinks by it. Undefined: no compression. */
  readonly compress?: CompressionMethod | undefined;
  readonly sync: boolean;
  /** How much of the bases of increments is compared with the disks. */
  readonly proveBase?: ProveSettings | undefined;
  readonly tool: string;
  readonly connect: Omit<ConnectOptions, "metaContexts" | "optionalContexts" | "signal">;
  readonly window?: Window | undefined;
  /** Shared by all disks. */
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  /**
   * Called before the commit, after the last byte was read and everything is on disk. Throws if the exports
   * may no longer show the same moment; then nothing is committed.
   */
  readonly confirm: () => Promise<void>;
  /**
   * Receives the opened clients as soon as they are open, and the caller closes them. Undefined: `takePoint`
   * closes them at its end.
   */
  readonly clients?: NbdClient[] | undefined;
  /** Whether every client has to stay connected until the caller closes it. */
  readonly clientsStay?: boolean | undefined;
  readonly onProgress?: ((disk: string, progress: PullProgress) => void) | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** The options of `takePoint` that are the same for every way to make a point. */
export type TakeSettings = Pick<
  TakePointOptions,
  | "format"
  | "digests"
  | "compress"
  | "sync"
  | "proveBase"
  | "tool"
  | "connect"
  | "window"
  | "rateLimit"
  | "signal"
  | "onProgress"
  | "onWarning"
>;

export interface TakenPoint {
  readonly manifest: Manifest;
  /**
   * The name of the domain's folder in the repository; not the domain's, if another one of that name was there
   * before.
   */
  readonly domainFolder: string;
  /** The path of the point. */
  readonly folder: string;
  /** Of each disk for which an increment was wanted: whether its base fits. */
  readonly proofs: readonly DiskProof[];
  /** Connections of all disks together; likewise requests and extents. */
  readonly connections: number;
  readonly requests: number;
  readonly extents: number;
  readonly seconds: number;
}

const DISKS_AT_ONCE = 8;
/** Most connections of all disks together. QEMU's server takes 100 clients, and others may want some. */
const CONNECTIONS_OF_ALL = 64;

/**
 * Pulls all disks in parallel and commits them as one restore point: all of them, or nothing.
 *
 * @throws {UsageError} this format or this version of Node does not support the compression
 * @throws {PreconditionError} a bitmap or an export is missing, a parent's format does not allow the
 *   increment
 * @throws {NbdError} a read failed, an extent is unknown, the server went away
 * @throws what `confirm` throws, and the file system's errors
 */
export async function takePoint(options: TakePointOptions): Promise<TakenPoint> {
  const started = performance.now();
  const { repository, domain } = options;
  refuseStrangeNames(options.disks);
  for (const disk of options.disks) refuseMixedChain(disk, options.format);
  if (options.compress) assertCompressible(options.format, options.compress);
  refuseForeignParents(options);
  const home = await domainFolder(repository, domain);
  const take = async (pending: PendingPoint): Promise<TakenPoint> => {
    await refuseOtherFolder(options, home);
    for (const notice of await firstPointNotices(repository, domain, home)) options.onWarning?.(notice);
    if (pending.clockWarning !== undefined) options.onWarning?.(pending.clockWarning);
    const signal = AbortSignal.any(options.signal ? [options.signal, pending.signal] : [pending.signal]);
    const clients = options.clients ?? [];
    const disksNow = await withParentsOfNow(options, home);
    try {
      // Before the disks, because the NVRAM keeps changing.
      const kept =
        options.definition &&
        (await keepFiles(options.definition, pending.folder.reach, { ...options, signal }));
      const identities = options.definition ? await diskIdentities(options.definition) : new Map();
      const pulled = await pullAll(
        { ...options, disks: disksNow, home, signal, identities },
        pending,
        clients,
      );
      for (const client of clients) await stillAnswers(client, signal);
      await options.confirm();
      signal.throwIfAborted();
      const disks = pulled.map(({ disk }) => disk);
      const manifest = { ...describe(options, pending, disks), ...kept };
      await pending.commit(manifest, { sync: options.sync });
      return {
        manifest,
        domainFolder: home,
        folder: repository.pointFolder(home, pending.id),
        proofs: pulled.flatMap(({ proof }) => proof ?? []),
        connections: pulled.reduce((total, { connections }) => total + connections, 0),
        requests: pulled.reduce((total, { requests }) => total + requests, 0),
        extents: pulled.reduce((total, { extents }) => total + extents, 0),
        seconds: (performance.now() - started) / 1000,
      };
    } finally {
      if (!options.clients) await Promise.allSettled(clients.map((client) => client.close()));
    }
  };
  return await repository.withPendingPoint(home, take, options.signal);
}

interface PullOptions extends TakePointOptions {
  readonly signal: AbortSignal;
  /** Name of the domain's folder. */
  readonly home: string;
  /** By the disks' names; those that are not known are missing. */
  readonly identities: ReadonlyMap<string, DiskIdentity>;
}

interface PulledDisk {
  readonly disk: DiskManifest;
  readonly connections: number;
  readonly proof?: DiskProof | undefined;
  readonly requests: number;
  readonly extents: number;
}

/** What the disks of a point have in common. */
interface Shared {
  readonly compress: ImageCompression | undefined;
  readonly digestThreads: DigestThreads;
}

async function pullAll(
  options: PullOptions,
  pending: PendingPoint,
  clients: NbdClient[],
): Promise<PulledDisk[]> {
  // These start threads only when they get work.
  await using workers = new CompressThreads();
  await using digestThreads = new DigestThreads(options.digests ?? DEFAULT_DIGESTS);
  const compress = options.compress && compressionOf(options.compress, workers, options.disks.length);
  const { connect, window, mustLeave } = sharesOf(options);
  return await allOrNone(options.disks, DISKS_AT_ONCE, options.signal, async (disk, signal) => {
    try {
      const opened = await copierOf(disk, { ...options, connect, signal }, clients);
      const { disk: proven, copy, client, proof } = opened;
      const shared = { compress, digestThreads };
      const pulled = await pullDisk({ ...options, window, signal }, pending, proven, copy, shared);
      const connections = client?.connections ?? 0;
      if (client && mustLeave) await leaveEarly(client, clients, signal);
      return { ...pulled, connections, proof };
    } catch (error) {
      throw ofDisk(disk.name, error);
    }
  });
}

/** The limits of each disk's connections, so that those of all together stay within the bound. */
function sharesOf({
  connect,
  window,
  disks,
  clientsStay = false,
}: TakePointOptions): Pick<TakePointOptions, "connect" | "window"> & { readonly mustLeave: boolean } {
  const most = Math.max(1, Math.floor(CONNECTIONS_OF_ALL / disks.length));
  const atMost = (wanted: number | undefined): number | undefined =>
    most === 1 ? 1 : wanted && Math.min(wanted, most);
  const connections = atMost(connect.connections);
  return {
    connect: connections === undefined ? connect : { ...connect, connections },
    window: { ...window, connections: atMost(window?.connections), mostConnections: most },
    mustLeave: disks.length > CONNECTIONS_OF_ALL && !clientsStay,
  };
}

/** Closes the client of a disk that is done, to make room for those of the next. */
async function leaveEarly(client: NbdClient, clients: NbdClient[], signal: AbortSignal): Promise<void> {
  await stillAnswers(client, signal);
  clients.splice(clients.indexOf(client), 1);
  await client.close();
}

interface Copier {
  /** The disk as it is taken: in full, if its base does not fit. */
  readonly disk: PointDisk;
  readonly copy: (options: CopyImageOptions) => Promise<PullResult>;
  readonly client?: NbdClient;
  readonly proof?: DiskProof | undefined;
}

/** @param clients receives the disk's client, if it has one; if they have to stay, as soon as it is open */
async function copierOf(disk: PointDisk, options: PullOptions, clients: NbdClient[]): Promise<Copier> {
  if (disk.address === undefined) return { disk, copy: (copying) => copyImage(disk.source, copying) };
  const { connect, signal, clientsStay } = options;
  const opening = { ...connect, signal };
  const bitmap = disk.increment?.bitmap;
  const client = await openExport(disk.address, bitmap, opening, clientsStay ? clients : undefined);
  if (!clientsStay) clients.push(client);
  const { proof, reason } = await proveBaseOf(disk, client, options);
  // A full copy goes over the same connections: some servers end when their last client disconnects.
  const proven = reason === undefined ? disk : { ...disk, increment: undefined, reason };
  const { increment } = proven;
  const parentSize = increment && diskOf(increment.parent, disk.name)?.virtualSize;
  const copy: Copier["copy"] = (copying) =>
    pullImage({ ...copying, client, bitmap: increment?.bitmap, parentSize });
  return { disk: proven, copy, client, proof };
}

async function proveBaseOf(
  { name: disk, increment }: ExportedPointDisk,
  client: NbdClient,
  options: PullOptions,
): ReturnType<typeof proveDisk> {
  if (increment === undefined) return {};
  const { repository, home, rateLimit, signal, proveBase: settings } = options;
  const identity = options.identities.get(disk);
  const base = { ...increment, repository, domain: home, disk };
  return await proveDisk({ ...base, client, settings, identity, rateLimit, signal });
}

async function pullDisk(
  options: PullOptions,
  pending: PendingPoint,
  disk: PointDisk,
  copy: Copier["copy"],
  { compress, digestThreads }: Shared,
): Promise<Omit<PulledDisk, "connections" | "proof">> {
  const { format, increment } = { format: options.format, increment: disk.increment };
  const file = `${disk.name}.${format}`;
  const mapFile = increment && format === "raw" ? `${disk.name}.map` : undefined;
  const digestFile = options.digests && { file: `${disk.name}.digests`, algorithm: options.digests };
  const identity = options.identities.get(disk.name);
  const result = await copy({
    imagePath: pending.folder.at(file),
    format,
    backing: increment && format === "qcow2" ? backingOf(increment.parent, disk.name) : undefined,
    mapPath: mapFile && pending.folder.at(mapFile),
    digests: digestFile && {
      path: pending.folder.at(digestFile.file),
      algorithm: digestFile.algorithm,
      threads: digestThreads,
    },
    compress,
    sync: options.sync,
    window: options.window,
    rateLimit: options.rateLimit,
    signal: options.signal,
    onProgress: (progress) => options.onProgress?.(disk.name, progress),
  });
  return {
    requests: result.requests,
    extents: result.extents,
    disk: {
      name: disk.name,
      file,
      format,
      mode: result.mode,
      ...(disk.reason === undefined ? {} : { reason: disk.reason }),
      parent: increment?.parent.id ?? null,
      virtualSize: result.virtualSize,
      clusterSize: result.clusterSize,
      dirtyBytes: result.dirtyBytes,
      dataBytes: result.dataBytes,
      zeroBytes: result.zeroBytes,
      storedBytes: result.storedBytes,
      exportName: disk.address?.exportName ?? "",
      bitmap: increment?.bitmap ?? null,
      map:
        mapFile === undefined
          ? null
          : { file: mapFile, sha256: await sha256OfFile(pending.folder.at(mapFile)) },
      digests: digestFile && result.digestsSha256 ? { ...digestFile, sha256: result.digestsSha256 } : null,
      ...(identity === undefined ? {} : { identity }),
    },
  };
}

/** All disks share the compression threads. Their buffers take no more memory than those of a single disk. */
function compressionOf(method: CompressionMethod, workers: CompressThreads, disks: number): ImageCompression {
  return { method, workers, bufferBytes: BUFFER_BYTES / Math.min(disks, DISKS_AT_ONCE) };
}

/**
 * The parent's image as the overlay's header names it: a relative path, so that the repository can be moved.
 */
function backingOf(parent: Manifest, diskName: string): Backing | undefined {
  const disk = diskOf(parent, diskName);
  return disk && { name: `../${parent.id}/${disk.file}`, format: disk.format };
}

/** Disk names become file names, and may come from a document that is not trusted. */
function refuseStrangeNames(disks: readonly PointDisk[]): void {
  const seen = new Set<string>();
  for (const { name } of disks) {
    if (!isDiskName(name)) throw new UsageError("E_DISK_NAME", `"${name}" cannot be the name of a disk`);
    if (seen.has(name)) throw new UsageError("E_DISK_NAME", `the disk ${name} is named twice`);
    seen.add(name);
  }
}

/**
 * The disks with their parents as they are now. Parents were chosen before the lock was taken, so a prune may
 * have merged them into other points since, or other points into them.
 */
async function withParentsOfNow(
  { repository, disks }: TakePointOptions,
  home: string,
): Promise<readonly PointDisk[]> {
  const ids = await repository.pointIds(home);
  const now: PointDisk[] = [];
  for (const disk of disks) {
    const { name, increment } = disk;
    if (!increment) {
      now.push(disk);
      continue;
    }
    const { id } = increment.parent;
    if (!ids.includes(id)) {
      const message = `${name}: its parent ${id} was pruned meanwhile: try again`;
      throw new PreconditionError("E_NO_PARENT", message, { details: { disk: name } });
    }
    now.push({ ...disk, increment: { ...increment, parent: await repository.point(home, id) } });
  }
  return now;
}

/** A chain never leads from one guest's disk to another's. */
function refuseForeignParents({ domain, disks }: TakePointOptions): void {
  for (const { name, increment } of disks) {
    if (!increment || isSame(uuidOf(increment.parent.domain), uuidOf(domain))) continue;
    const message = `${name}: its parent ${increment.parent.id} is of another domain, by its UUID`;
    throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { disk: name } });
  }
}

/** Another domain of this name may have got its first point since the folder was chosen. */
async function refuseOtherFolder({ repository, domain }: TakePointOptions, home: string): Promise<void> {
  if ((await domainFolder(repository, domain)) === home) return;
  const message = `another domain called ${domain.name} was backed up for the first time meanwhile, and nothing was stored: try again`;
  throw new PreconditionError("E_OTHER_DOMAIN", message, { details: { domain: domain.name } });
}

/** QEMU would read the clean areas of a raw increment as zeroes if it were a backing file. */
function refuseMixedChain(disk: PointDisk, format: ImageFormat): void {
  const parent = disk.increment && diskOf(disk.increment.parent, disk.name);
  if (format === "qcow2" && parent?.format === "raw" && parent.mode === "incremental") {
    const message = `${disk.name}: its parent ${disk.increment?.parent.id} is a raw increment, which cannot be the backing file of a qcow2 image: go on with --format raw, or take a full backup`;
    throw new PreconditionError("E_RAW_PARENT", message, { details: { disk: disk.name } });
  }
}

/** Adds the disk's name to an error. Keeps class and code, because callers decide by them. */
function ofDisk(disk: string, cause: unknown): unknown {
  if (!(cause instanceof Error)) return cause;
  const message = `${disk}: ${cause.message}`;
  if (cause instanceof BackupError) return cause.of(message, { disk });
  const { code } = cause as NodeJS.ErrnoException;
  return new BackupError(code ?? "E_FAILED", message, { cause, details: { ...factsOf(cause), disk } });
}

/** The extra fields of an NBD or system error, besides its message. */
function factsOf(error: Error): Record<string, unknown> {
  const {
    name: _name,
    code: _code,
    message: _message,
    stack: _stack,
    cause: _cause,
    ...facts
  } = error as Error & {
    code?: unknown;
  };
  return facts;
}

/**
 * Finds a server that died after its last reply. If the export has meta contexts, this asks for the block
 * status of its first bytes instead of reading them, because some exports don't allow clean bytes to be read.
 */
async function stillAnswers(client: NbdClient, signal: AbortSignal): Promise<void> {
  const { size, contexts, blockSize } = client.export;
  const length = Math.min(size, blockSize?.minimum ?? 512, 65_536);
  if (length === 0) return;
  // Without the signal: an abort in mid-reply closes the connection, which not every guest survives.
  if (contexts.length === 0) await client.read(0, Buffer.alloc(length));
  else for await (const _ of client.blockStatus({ length, signal }));
  signal.throwIfAborted();
}

function describe(options: TakePointOptions, pending: PendingPoint, disks: DiskManifest[]): Manifest {
  return {
    format: "nbdpull-point",
    version: MANIFEST_VERSION,
    id: pending.id,
    domain: options.domain,
    level: disks.every((disk) => disk.mode === "full") ? "full" : "incremental",
    checkpoint: options.checkpoint,
    createdAt: pending.createdAt.toISOString(),
    tool: options.tool,
    disks,
  };
}
