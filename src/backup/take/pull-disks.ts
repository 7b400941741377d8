import assert from "node:assert/strict";
import { setMaxListeners } from "node:events";
import { anySignal, type NbdClient } from "../../nbd/index.js";
import { BackupError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { CompressThreads } from "../compress/compress-threads.js";
import { DEFAULT_DIGESTS } from "../digest/algorithms.js";
import { DigestThreads } from "../digest/digest-threads.js";
import { openPatiently } from "../export/open-patiently.js";
import { Outages } from "../export/outages.js";
import { sha256OfFile } from "../host/plain-files.js";
import { bufferBytesFor, type ImageCompression } from "../pull/compressed-store.js";
import { leftHeaderOf } from "../pull/left-header.js";
import type { JournalTarget } from "../pull/left-journal.js";
import { type CopyImageOptions, copyImage, type PullResult, pullImage } from "../pull/pull-image.js";
import type { CompressionMethod } from "../qcow2/can-compress.js";
import type { Backing } from "../qcow2/writer.js";
import {
  type DiskIdentity,
  type DiskManifest,
  diskOf,
  imageName,
  type Manifest,
} from "../repository/manifest.js";
import type { PendingPoint } from "../repository/pending-point.js";
import { disksOnDamage, noteBaseDamage } from "./damaged-bases.js";
import { type BaseDamage, type DiskProof, proveDisk } from "./prove-disk.js";
import {
  type ExportedPointDisk,
  journalName,
  type PointDisk,
  type TakePointOptions,
} from "./take-options.js";

const DISKS_AT_ONCE = 8;
const DISKS_AT_ONCE_TO_STORE = 2;
/** Images that are uploaded at a time, of all points that are taken side by side: each takes 32 MiB at least. */
const IMAGES_AT_ONCE_TO_STORE = 3;
/** Most connections of all disks together. QEMU's server takes 100 clients, and others may want some. */
const CONNECTIONS_OF_ALL = 64;

interface PullDisksOptions extends TakePointOptions {
  readonly signal: AbortSignal;
  /** Name of the domain's folder. */
  readonly home: string;
  /** By the disks' names; those that are not known are missing. */
  readonly identities: ReadonlyMap<string, DiskIdentity>;
}

export interface PulledDisk {
  readonly disk: DiskManifest;
  readonly connections: number;
  readonly proof?: DiskProof | undefined;
  readonly requests: number;
  readonly extents: number;
  readonly keptBytes: number;
  readonly readBytes: number;
}

/** What the disks of a point have in common. */
interface Shared {
  readonly compress: ImageCompression | undefined;
  readonly digestThreads: DigestThreads;
}

/**
 * Pulls all disks into a pending point, some at a time: all of them, or it fails with the first that does.
 *
 * @param clients receives the clients that are open
 * @throws {BackupError} with the name of the disk in its message and details; keeps the class and the code
 */
export async function pullAll(
  options: PullDisksOptions,
  pending: PendingPoint,
  clients: NbdClient[],
): Promise<PulledDisk[]> {
  // These start threads only when they get work.
  await using workers = new CompressThreads();
  await using digestThreads = new DigestThreads(options.digests ?? DEFAULT_DIGESTS);
  const atOnce = disksAtOnce(options);
  // An image for an object store is written from front to back, compressed or not.
  const isOrdered = options.compress !== undefined || options.repository.isInStore;
  const compress = isOrdered ? compressionOf(options.compress, workers, atOnce) : undefined;
  const { connect, window, mustLeave } = sharesOf(options);
  // Clients are opened for both walks over the disks, and a failure of any disk ends what they wait for.
  const failed = new AbortController();
  const signal = anySignal(options.signal, failed.signal);
  setMaxListeners(0, signal);
  const each = async <T extends { readonly name: string }, R>(
    disks: readonly T[],
    work: (disk: T) => Promise<R>,
  ): Promise<R[]> =>
    await allOrNone(disks, atOnce, signal, async (disk) => {
      try {
        return await work(disk);
      } catch (error) {
        const named = ofDisk(disk.name, error);
        failed.abort(named);
        throw named;
      }
    });
  // The proof of one disk's base can find that no disk may be based on it, so nothing is stored before the
  // last.
  const judged = await each(options.disks, async (disk): Promise<JudgedDisk> => {
    if (mustLeave && disk.increment === undefined) return { name: disk.name, disk, isBegun: false };
    const opening = { ...options, connect, signal };
    const found = await judge(disk, opening, clients, journalOf(disk, options, pending));
    if (!found.opened || !mustLeave) return found;
    await leaveEarly(found.opened.client, clients, signal);
    return { ...found, opened: undefined };
  });
  return await each(await withoutDamagedBases(judged, options), async (disk) => {
    const opened = disk.opened ?? (await openDisk(disk.disk, { ...options, connect, signal }, clients));
    const shared = { compress, digestThreads, journal: journalOf(disk, options, pending) };
    const pulled = await pullDisk({ ...options, window, signal }, pending, { ...disk, opened }, shared);
    const connections = opened?.client.connections ?? 0;
    if (opened && mustLeave) await leaveEarly(opened.client, clients, signal);
    return { ...pulled, connections, proof: disk.proof };
  });
}

/**
 * How many disks of a point are pulled side by side: into an object store fewer, since parts wait in memory,
 * those of the points that are taken beside it too.
 */
export function disksAtOnce({
  disks,
  repository,
  pointsAtOnce = 1,
}: Pick<TakePointOptions, "disks" | "repository" | "pointsAtOnce">): number {
  if (!repository.isInStore) return Math.min(disks.length, DISKS_AT_ONCE);
  const share = Math.max(1, Math.floor(IMAGES_AT_ONCE_TO_STORE / pointsAtOnce));
  return Math.min(disks.length, DISKS_AT_ONCE_TO_STORE, share);
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

/** The connection to a disk's export. */
interface OpenedDisk {
  readonly client: NbdClient;
  readonly outages: Outages;
}

/** A disk as it is taken: in full, if its base does not fit. */
interface JudgedDisk {
  readonly name: string;
  readonly disk: PointDisk;
  readonly proof?: DiskProof | undefined;
  readonly damage?: BaseDamage | undefined;
  /** A killed run has begun its image, and so has decided what it is. */
  readonly isBegun: boolean;
  /** Undefined: it has no export, or is opened when its turn comes. */
  readonly opened?: OpenedDisk | undefined;
}

/** Opens a disk and proves the base of its increment. */
async function judge(
  disk: PointDisk,
  options: PullDisksOptions,
  clients: NbdClient[],
  journal: Pick<JournalTarget, "path" | "key" | "resume"> | undefined,
): Promise<JudgedDisk> {
  const { name } = disk;
  const opened = await openDisk(disk, options, clients);
  if (disk.address === undefined || !opened) return { name, disk, isBegun: false };
  const left = journal && (await leftHeaderOf(journal));
  const isBegun = left?.complete === true;
  // The run that began the image has found that the base does not fit.
  const found = isBegun
    ? { reason: left.reason ?? disk.reason }
    : await proveBaseOf(disk, opened.client, options);
  const { proof, reason, damage } = { proof: undefined, damage: undefined, ...found };
  // A full copy goes over the same connections: some servers end when their last client disconnects.
  const proven = reason === undefined ? disk : { ...disk, increment: undefined, reason };
  return { name, disk: proven, proof, damage, isBegun, opened };
}

/** Takes every disk in full that would be based on what the proof of any has found damaged. */
async function withoutDamagedBases(
  judged: readonly JudgedDisk[],
  options: PullDisksOptions,
): Promise<readonly JudgedDisk[]> {
  const damages = judged.flatMap(({ damage }) => damage ?? []);
  for (const damage of damages) await noteBaseDamage(damage, options);
  const begun = new Set(judged.flatMap(({ name, isBegun }) => (isBegun ? [name] : [])));
  const disks = judged.map(({ disk }) => disk);
  const reasons = await disksOnDamage(damages, disks, begun, options);
  return judged.map((each): JudgedDisk => {
    const reason = reasons.get(each.name);
    return reason === undefined ? each : { ...each, disk: { ...each.disk, increment: undefined, reason } };
  });
}

/**
 * @param clients receives the disk's client, if it has one; if they have to stay, as soon as it is open
 * @returns undefined if the disk is no export
 */
async function openDisk(
  disk: PointDisk,
  options: PullDisksOptions,
  clients: NbdClient[],
): Promise<OpenedDisk | undefined> {
  if (disk.address === undefined) return undefined;
  const { connect, signal, clientsStay, onOutage } = options;
  const outages = new Outages(onOutage && ((news) => onOutage(disk.name, news)));
  const bitmap = disk.increment?.bitmap;
  const opened = clientsStay ? clients : undefined;
  const opening = openPatiently(disk.address, bitmap, { ...connect, signal }, { outages, opened });
  options.onOpening?.(opening);
  const client = await opening;
  if (!clientsStay) clients.push(client);
  return { client, outages };
}

async function proveBaseOf(
  { name: disk, increment }: ExportedPointDisk,
  client: NbdClient,
  options: PullDisksOptions,
): ReturnType<typeof proveDisk> {
  if (increment === undefined) return {};
  const { repository, home, rateLimit, signal, proveBase: settings } = options;
  const identity = options.identities.get(disk);
  const base = { ...increment, repository, domain: home, disk };
  return await proveDisk({ ...base, client, settings, identity, rateLimit, signal });
}

async function pullDisk(
  options: PullDisksOptions,
  pending: PendingPoint,
  { disk, opened }: JudgedDisk,
  { compress, digestThreads, journal }: Shared & { readonly journal: ReturnType<typeof journalOf> },
): Promise<Omit<PulledDisk, "connections" | "proof">> {
  const { format, increment } = { format: options.format, increment: disk.increment };
  const file = `${disk.name}.${format}`;
  const mapFile = increment && format === "raw" ? `${disk.name}.map` : undefined;
  const digestFile = options.digests && { file: `${disk.name}.digests`, algorithm: options.digests };
  const identity = options.identities.get(disk.name);
  const copy = (copying: CopyImageOptions): Promise<PullResult> => {
    if (disk.address === undefined) return copyImage(disk.source, copying);
    assert(opened, "an export is open when its turn comes");
    const parentSize = increment && diskOf(increment.parent, disk.name)?.virtualSize;
    return pullImage({ ...copying, client: opened.client, bitmap: increment?.bitmap, parentSize });
  };
  const outages = opened?.outages;
  const result = await copy({
    imagePath: pending.at(file),
    format,
    backing: increment && format === "qcow2" ? backingOf(increment.parent, disk.name) : undefined,
    mapPath: mapFile && pending.folder?.at(mapFile),
    digests: digestFile && {
      path: pending.at(digestFile.file),
      algorithm: digestFile.algorithm,
      threads: digestThreads,
    },
    compress,
    journal: journal && {
      ...journal,
      facts: {
        point: pending.id,
        disk: disk.name,
        bitmap: increment?.bitmap ?? null,
        parent: increment?.parent.id ?? null,
        reason: disk.reason ?? null,
      },
    },
    sync: options.sync,
    window: options.window,
    rateLimit: options.rateLimit,
    signal: options.signal,
    onProgress: (progress) => options.onProgress?.(disk.name, progress),
  });
  return {
    requests: result.requests,
    extents: result.extents,
    keptBytes: result.keptBytes ?? 0,
    readBytes: result.readBytes,
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
        mapFile === undefined || !pending.folder
          ? null
          : { file: mapFile, sha256: await sha256OfFile(pending.folder.at(mapFile)) },
      digests: digestFile && result.digestsSha256 ? { ...digestFile, sha256: result.digestsSha256 } : null,
      ...(identity === undefined ? {} : { identity }),
      ...(outages?.counts === undefined ? {} : { outages: outages.counts }),
    },
  };
}

/** Where the disk's journal is, if the point is to be gone on with after a crash. */
function journalOf(
  { name }: Pick<PointDisk, "name">,
  { resumable }: PullDisksOptions,
  { folder }: PendingPoint,
): Omit<JournalTarget, "facts"> | undefined {
  if (!resumable || !folder) return undefined;
  return { path: folder.at(journalName(name)), key: resumable.key, resume: resumable.begun !== undefined };
}

/** All disks share the compression threads. Their buffers take no more memory than those of a single disk. */
function compressionOf(
  method: CompressionMethod | undefined,
  workers: CompressThreads,
  atOnce: number,
): ImageCompression {
  return { method, workers, bufferBytes: bufferBytesFor(method) / atOnce };
}

/**
 * The parent's image as the overlay's header names it: a relative path, so that the repository can be moved.
 */
function backingOf(parent: Manifest, diskName: string): Backing | undefined {
  const disk = diskOf(parent, diskName);
  return disk && { name: `../${parent.id}/${imageName(parent, disk)}`, format: disk.format };
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
export async function stillAnswers(client: NbdClient, signal: AbortSignal): Promise<void> {
  const { size, contexts, blockSize } = client.export;
  const length = Math.min(size, blockSize?.minimum ?? 512, 65_536);
  if (length === 0) return;
  // Without the signal: an abort in mid-reply closes the connection, which not every guest survives.
  if (contexts.length === 0) await client.read(0, Buffer.alloc(length));
  else for await (const _ of client.blockStatus({ length, signal }));
  signal.throwIfAborted();
}
