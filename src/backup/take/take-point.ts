/**
 * The take room makes restore points. Every way to get one ends in `takePoint` below: it copies all disks of
 * one moment into a pending point of the repository, writes the manifest and commits, or leaves nothing
 * behind.
 *
 * Read this file first; check-disks.ts refuses disks that don't fit the repository, and pull-disks.ts copies
 * them. Then backup.ts (`nbdpull backup` of a running domain: begin-job.ts begins the job, the disks are
 * pulled, and clear-traces.ts ends the job). stopped-backup.ts is for domains that are off, attach.ts for
 * jobs that another program began, and import.ts with foreign-image.ts for existing image files. Two have no
 * repository: pull-file.ts pulls one export into a file, and pull-stream.ts into a pipe, for which
 * ordered-writer.ts takes the place of an image. This room never changes or deletes an existing point, and
 * never commits only some of the disks.
 */

import { anySignal } from "../../nbd/index.js";
import { diskIdentities } from "../guest/disk-identity.js";
import { keepFiles } from "../guest/keep-files.js";
import { assertCompressible } from "../pull/compressible.js";
import { loadImageStore } from "../pull/open-store.js";
import { domainFolder, firstPointNotices } from "../repository/domain-folder.js";
import { type DiskManifest, MANIFEST_VERSION, type Manifest } from "../repository/manifest.js";
import type { PendingPoint } from "../repository/pending-point.js";
import { refuseRawInStore } from "../repository/refuse-store.js";
import { type BegunNote, removeBegunNote, writeNote } from "./begun-note.js";
import {
  refuseForeignParents,
  refuseMixedChain,
  refuseOtherFolder,
  refuseStrangeNames,
  withParentsOfNow,
} from "./check-disks.js";
import type { DiskProof } from "./prove-disk.js";
import { disksAtOnce, type PulledDisk, pullAll, stillAnswers } from "./pull-disks.js";
import { journalName, type TakePointOptions } from "./take-options.js";

export interface TakenPoint {
  readonly manifest: Manifest;
  /**
   * The name of the domain's folder in the repository; not the domain's, if another one of that name was
   * there before.
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

/** Loads what the images of a point need: nothing of it is to be loaded once a job has begun. */
export async function loadForPoint(
  image: Pick<TakePointOptions, "format" | "compress" | "digests">,
): Promise<void> {
  await loadImageStore({ ...image, journal: true });
}

/**
 * Pulls all disks in parallel and commits them as one restore point: all of them, or nothing.
 *
 * @throws {UsageError} this format or this version of Node does not support the compression; `E_STORE_FORMAT`
 * @throws {PreconditionError} a bitmap or an export is missing, a parent's format does not allow the
 *   increment
 * @throws {NbdError} a read failed, an extent is unknown, the server went away
 * @throws what `confirm` throws, and the file system's errors
 */
export async function takePoint(options: TakePointOptions): Promise<TakenPoint> {
  const started = performance.now();
  const { repository, domain } = options;
  refuseStrangeNames(options.disks);
  refuseRawInStore(repository.path, options.format);
  for (const disk of options.disks) refuseMixedChain(disk, options.format);
  if (options.compress) assertCompressible(options.format, options.compress);
  refuseForeignParents(options);
  const home = await domainFolder(repository, domain);
  const take = async (pending: PendingPoint): Promise<TakenPoint> => {
    await refuseOtherFolder(options, home);
    for (const notice of await firstPointNotices(repository, domain, home)) options.onWarning?.(notice);
    if (pending.clockWarning !== undefined) options.onWarning?.(pending.clockWarning);
    const signal = anySignal(options.signal, pending.signal);
    const clients = options.clients ?? [];
    const disksNow = await withParentsOfNow(options, home);
    try {
      // Before the disks, because the NVRAM keeps changing.
      const kept =
        options.resumable?.begun?.kept ??
        (options.definition && (await keep(options.definition, pending, { ...options, signal })));
      await noteBegun(options, pending, kept);
      const identities = options.definition ? await diskIdentities(options.definition) : new Map();
      const pulled = await pullAll(
        { ...options, disks: disksNow, home, signal, identities },
        pending,
        clients,
      );
      for (const client of clients) await stillAnswers(client, signal);
      await options.confirm(signal);
      signal.throwIfAborted();
      const disks = pulled.map(({ disk }) => disk);
      const manifest = { ...describe(options, pending, disks), ...kept, ...resumedOf(options, pulled) };
      await removeNotes(options, pending);
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
  const begun = options.resumable?.begun;
  return await repository.withPendingPoint(
    home,
    take,
    options.signal,
    begun && { id: begun.id, createdAt: new Date(begun.createdAt) },
    disksAtOnce(options) * (options.pointsAtOnce ?? 1),
  );
}

async function keep(
  definition: NonNullable<TakePointOptions["definition"]>,
  pending: PendingPoint,
  options: Parameters<typeof keepFiles>[2],
): ReturnType<typeof keepFiles> {
  return await pending.keep((folder) => keepFiles(definition, folder, options));
}

/** Leaves what a later run needs, if this one is killed. */
async function noteBegun(
  { resumable }: TakePointOptions,
  { id, createdAt, folder }: PendingPoint,
  kept: BegunNote["kept"] = {},
): Promise<void> {
  if (!resumable || !folder) return;
  const { key, about, begun } = resumable;
  const resumed = begun ? begun.resumed + 1 : 0;
  await writeNote(folder, key, { id, createdAt: createdAt.toISOString(), resumed, about, kept });
}

/** A point has nothing of it. */
async function removeNotes({ resumable, disks }: TakePointOptions, { folder }: PendingPoint): Promise<void> {
  if (!resumable || !folder) return;
  await removeBegunNote(folder);
  for (const { name } of disks) await folder.unlink(journalName(name));
}

function resumedOf(
  { resumable }: TakePointOptions,
  pulled: readonly PulledDisk[],
): Pick<Manifest, "resumed"> {
  const begun = resumable?.begun;
  if (!begun) return {};
  const keptBytes = pulled.reduce((total, disk) => total + disk.keptBytes, 0);
  const readBytes = pulled.reduce((total, disk) => total + disk.readBytes, 0);
  return { resumed: { times: begun.resumed + 1, keptBytes, readBytes } };
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
