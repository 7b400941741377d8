import { DamageError, PreconditionError } from "../base/errors.js";
import { SoundBases } from "../chain/sound-bases.js";
import type { JobConnection } from "../guest/job-connection.js";
import type { IncrementalDisk } from "../libvirt/documents/job-xml.js";
import { isSame, type Manifest } from "../repository/manifest.js";
import { pointsOf } from "../repository/point-owners.js";
import type { Repository } from "../repository/repository.js";
import type { JobView } from "./job-view.js";
import type { PointDisk } from "./take-options.js";

/** Points that an increment could be based on. */
interface History {
  readonly repository: Repository | undefined;
  /** The name of the domain's folder in the repository. */
  readonly home: string;
  readonly points: readonly Manifest[];
  /** How many more there are whose manifests can't be read. */
  readonly unreadable: number;
  readonly bases: SoundBases | undefined;
}

/**
 * The disks of a job as a point takes them: an increment where the job has one and its parent can be
 * restored, with all its disks. What would stand on damage is taken in full, which the exports of an
 * increment allow: they show the whole disk.
 *
 * @param home the name of the domain's folder in the repository
 * @throws {PreconditionError} no point is the parent of an increment
 */
export async function attachedDisks(
  view: JobView,
  connection: JobConnection,
  repository: Repository | undefined,
  home: string,
  onWarning: ((message: string) => void) | undefined,
): Promise<PointDisk[]> {
  let unreadable = 0;
  const warn = ({ message }: DamageError): void => {
    unreadable += 1;
    onWarning?.(message);
  };
  const points = (await repository?.points(home, warn)) ?? [];
  const bases = repository && new SoundBases(repository, home, { points });
  const history = { repository, home, points, unreadable, bases };
  for (;;) {
    const known = bases?.unsound;
    const disks = await disksOn(view, connection, history);
    if (bases?.unsound === known) return disks;
  }
}

async function disksOn(view: JobView, connection: JobConnection, history: History): Promise<PointDisk[]> {
  const others = view.disks.some((disk) => disk.mode === "incremental");
  const disks: PointDisk[] = [];
  for (const disk of view.disks) {
    const { name } = disk;
    const address = connection.addressOf(disk.exportName);
    if (disk.mode === "incremental") {
      const { parent, reason } = await findParent(disk, view, history);
      if (parent) disks.push({ name, address, increment: { bitmap: disk.bitmap, parent } });
      else disks.push({ name, address, reason });
    } else {
      disks.push({ name, address, reason: others ? "the job backs this disk up in full" : undefined });
    }
  }
  return disks;
}

/**
 * The newest point of the checkpoint that the job's increment of this disk starts from.
 *
 * A checkpoint can be deleted and another made with the same name, so the domain's UUID and the creation time
 * must match too, as far as they are known.
 *
 * @returns the point, or why the disk is taken in full
 * @throws {PreconditionError} no point matches
 */
async function findParent(
  disk: IncrementalDisk,
  view: JobView,
  { repository, home, points, unreadable, bases }: History,
): Promise<
  | { readonly parent: Manifest; readonly reason?: never }
  | { readonly parent?: never; readonly reason: string }
> {
  const base = disk.incremental;
  const remedy = `begin the job with backupmode='full' for ${disk.name}, or attach to the repository that has that point`;
  const refuse = (code: string, what: string): PreconditionError =>
    new PreconditionError(code, `${disk.name}: ${what}. Nothing was stored: ${remedy}`, {
      details: { disk: disk.name, checkpoint: base },
    });
  const isNamed = (point: Manifest): boolean =>
    point.checkpoint?.name === base && point.disks.some(({ name }) => name === disk.name);
  const ofDomain = pointsOf(points, view.domain.uuid).filter(isNamed);
  const created = await view.creationTime(base);
  const parent = ofDomain.findLast(({ checkpoint }) => isSame(checkpoint?.creationTime, created));
  if (bases && parent) {
    try {
      const elsewhere = await bases.prove(parent, disk.name);
      return elsewhere === undefined ? { parent } : { reason: elsewhere };
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
      return { reason: `an increment on ${parent.id} could not be restored: ${error.message}` };
    }
  }
  if (ofDomain.length > 0) {
    const what = `checkpoint ${base} was made anew since the repository's point of it was taken`;
    throw refuse("E_OTHER_CHECKPOINT", `${what}${created === undefined ? "" : ` (at ${asTime(created)})`}`);
  }
  const { name } = view.domain;
  const others = home === name ? [] : ((await repository?.points(name, () => undefined)) ?? []);
  if ([...points, ...others].some(isNamed)) {
    throw refuse(
      "E_OTHER_DOMAIN",
      `the point of checkpoint ${base} is of another domain of this name, by its UUID`,
    );
  }
  if (unreadable > 0) {
    return { reason: `no point that can be read is of checkpoint ${base}, from which the job counts` };
  }
  throw refuse(
    "E_NO_PARENT",
    `the job counts its changes from checkpoint ${base}, of which the repository has no point`,
  );
}

function asTime(seconds: number): string {
  return new Date(seconds * 1000).toISOString();
}
