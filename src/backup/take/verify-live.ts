import type { NbdClient } from "../../nbd/index.js";
import { type Damage, DamageList } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { Progress } from "../base/progress.js";
import { openPatiently } from "../export/open-patiently.js";
import { Outages } from "../export/outages.js";
import type { Guest } from "../guest/guest.js";
import { patientBy } from "../guest/job-connection.js";
import { exportedDisks, type IncrementalDisk } from "../libvirt/documents/job-xml.js";
import { clientsMustStay } from "../libvirt/fragile-disks.js";
import { proveBase } from "../prove/prove-base.js";
import { diskOf, type Manifest } from "../repository/manifest.js";
import type { BackupOptions } from "./backup-options.js";
import type { BegunJob } from "./begin-job.js";
import { type FrozenDomain, type LookOptions, lookAtFrozen } from "./frozen-domain.js";

export interface VerifyLiveOptions extends LookOptions, Pick<BackupOptions, "rateLimit" | "onOutage"> {
  readonly onProgress?: ((disk: string, progress: LiveProgress) => void) | undefined;
}

/** Bytes of a disk. */
export interface LiveProgress {
  readonly comparedBytes: number;
  readonly virtualSize: number;
}

export interface LiveDiskReport {
  readonly disk: string;
  /** The point whose chain the disk was compared with; null if there is none that it can be compared with. */
  readonly point: string | null;
  /** Why it was not compared. */
  readonly reason?: string | undefined;
  /** Guest bytes that were compared. */
  readonly comparedBytes: number;
  /** Clusters that the server could not read. */
  readonly unread: number;
  /** Where disk and chain differ, though the bitmap calls it clean; up to 1000 places. */
  readonly findings: readonly Damage[];
}

export interface LiveReport {
  readonly domain: string;
  readonly disks: readonly LiveDiskReport[];
}

/** Most places that are listed of a disk. */
const MAX_FINDINGS = 1000;

/**
 * Compares every disk of a running domain with the newest chain that an increment of it could be based on,
 * apart from what has changed since. Takes no point and makes no checkpoint: it begins a backup job with the
 * bitmaps of the chain's checkpoint, reads from that, and ends it. What a dead backup to the same repository
 * left is removed first; a failure removes everything that was made.
 *
 * @throws {PreconditionError} the domain is off or busy, another backup runs, or no disk has a base
 * @throws {DamageError} a chain is damaged, so nothing can be compared with it
 */
export async function verifyLive(options: VerifyLiveOptions): Promise<LiveReport> {
  // An increment is planned for its base alone: its format does not matter, and there has to be one.
  return await lookAtFrozen(options, "incremental", async (frozen) => ({
    domain: frozen.guest.domain.name,
    // Until the end no prune may change the chains.
    disks: await compareDisks(frozen.guest, frozen.begun, frozen, {
      ...options,
      reconnect: frozen.reconnect,
      signal: frozen.signal,
    }),
  }));
}

const DISKS_AT_ONCE = 4;
/** The comparison of a disk ends after so many clusters that differ: it is another disk. */
const MOST_DIFFERING = 262_144;

interface Cluster {
  readonly guestOffset: number;
  readonly length: number;
}

type JobToCompare = Pick<FrozenDomain, "home" | "connection" | "clients">;

async function compareDisks(
  guest: Guest,
  { job, plans }: BegunJob,
  { home, connection, clients }: JobToCompare,
  options: VerifyLiveOptions,
): Promise<LiveDiskReport[]> {
  // The disconnect of a client ends a guest with an iothread, if the job still runs.
  const opened = clientsMustStay(guest.domain) ? clients.all : undefined;
  const exported = exportedDisks(job.job);
  return await allOrNone(plans, DISKS_AT_ONCE, options.signal, async (plan, signal) => {
    const disk = exported.find(({ name }) => name === plan.name);
    if (plan.base === undefined || disk?.mode !== "incremental") {
      return {
        ...{ disk: plan.name, point: null, comparedBytes: 0, unread: 0, findings: [] },
        reason: plan.reason ?? "it took no part in the job",
      };
    }
    const outages = new Outages((news) => options.onOutage?.(disk.name, news));
    const opening = { ...patientBy(connection, { reconnect: options.reconnect }), signal };
    const address = connection.addressOf(disk.exportName);
    const opens = openPatiently(address, disk.bitmap, opening, { outages, opened });
    clients.isOpening(opens);
    const client = await opens;
    if (opened === undefined) clients.all.push(client);
    const { parent } = plan.base;
    return await compareDisk(guest, { home, disk, parent, client }, { ...options, signal });
  });
}

async function compareDisk(
  { repository }: Guest,
  {
    home,
    disk: { name, bitmap },
    parent,
    client,
  }: Pick<JobToCompare, "home"> & {
    readonly disk: IncrementalDisk;
    readonly parent: Manifest;
    readonly client: NbdClient;
  },
  { rateLimit, onProgress, signal }: VerifyLiveOptions & { readonly signal: AbortSignal },
): Promise<LiveDiskReport> {
  const differing: Cluster[] = [];
  const virtualSize = diskOf(parent, name)?.virtualSize ?? 0;
  const progress = new Progress<LiveProgress>((state) => onProgress?.(name, state));
  let comparedBytes = 0;
  const { impossible, unread } = await proveBase({
    ...{ client, bitmap, repository, domain: home, parent, disk: name, rateLimit, signal },
    amount: "all",
    onDiffering: (cluster) => {
      differing.push(cluster);
      return differing.length < MOST_DIFFERING;
    },
    onBytes: (bytes) => {
      comparedBytes += bytes;
      progress.note({ comparedBytes, virtualSize });
    },
  }).catch((error: unknown) => {
    if (!(error instanceof DamageError)) throw error;
    throw error.of(`${name}: ${error.message}`, { point: parent.id, disk: name });
  });
  progress.finish();
  return {
    ...{ disk: name, point: parent.id, comparedBytes, unread, findings: findingsOf(differing) },
    ...(impossible === undefined ? {} : { reason: impossible }),
  };
}

/** The places where clusters differ. Neighbours become one. */
function findingsOf(differing: readonly Cluster[]): Damage[] {
  const list = new DamageList(MAX_FINDINGS);
  const message = "the disk is not as the chain has it, though its bitmap calls it clean";
  for (const cluster of differing.toSorted((a, b) => a.guestOffset - b.guestOffset))
    list.note({ message, ...cluster });
  if (differing.length >= MOST_DIFFERING)
    list.note({ message: "so much differs that the comparison ended here" });
  return list.list();
}
