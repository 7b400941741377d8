/** Counts the dirty bitmaps in the disks' images, and says whose they are and what removes them. */
import { stat } from "node:fs/promises";
import { messageOf } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import { readInfo } from "../guest/qemu-img.js";
import { checkpointIdOf, checkpointPrefix, readCheckpoints } from "../libvirt/checkpoints.js";
import type { Checkpoint } from "../libvirt/documents/checkpoint-xml.js";
import type { DomainDefinition, DomainDisk } from "../libvirt/documents/domain-xml.js";
import { type Found, pass, type Subject, warn } from "./check.js";

/** A repository that is in use makes checkpoints more often than that. */
const QUIET_DAYS = 31;
const DAY_S = 24 * 60 * 60;

/** Whose checkpoint it is, by its name. */
export function ownerOf(name: string, ownPrefix: string | undefined): string {
  if (ownPrefix !== undefined && name.startsWith(ownPrefix)) return "this repository's";
  const id = checkpointIdOf(name);
  if (id !== undefined) return `repository ${id}'s`;
  return /^virtnbdbackup\./.test(name) ? "virtnbdbackup's" : "somebody else's";
}

export async function lookAtBitmapsInImages(subject: Subject): Promise<readonly Found[]> {
  const { libvirt, domain, ssh } = subject;
  if (!domain) return [];
  const checkpoints = await readCheckpoints(libvirt, domain);
  const found: Found[] = [];
  for (const disk of domain.disks) {
    if (disk.format !== "qcow2") continue;
    const known = checkpoints.filter((each) => bitmapIn(each, disk) !== undefined);
    const inFile = ssh ? undefined : await bitmapsInFile(disk, subject.signal);
    const unknown = (Array.isArray(inFile) ? inFile : []).filter(
      (bitmap) => !known.some((each) => bitmapIn(each, disk) === bitmap),
    );
    const unread = typeof inFile === "string" ? ` (the image can't be looked at: ${inFile})` : "";
    if (known.length + unknown.length === 0 && unread === "") continue;
    found.push(tell({ disk, known, unknown, unread }, domain, subject));
  }
  return found;
}

interface Seen {
  readonly disk: DomainDisk;
  readonly known: readonly Checkpoint[];
  /** Bitmaps in the image that belong to no checkpoint. */
  readonly unknown: readonly string[];
  readonly unread: string;
}

function tell({ disk, known, unknown, unread }: Seen, domain: DomainDefinition, subject: Subject): Found {
  const prefix = subject.repository && checkpointPrefix(subject.repository.id);
  const counts = new Map<string, number>();
  for (const { name } of known) {
    const owner = ownerOf(name, prefix);
    counts.set(owner, (counts.get(owner) ?? 0) + 1);
  }
  const parts = [...counts].map(([owner, count]) => `${count} ${owner}`);
  if (unknown.length > 0) parts.push(`${unknown.length} of no checkpoint (${unknown.join(", ")})`);
  const total = known.length + unknown.length;
  const cause = `${total} dirty ${total === 1 ? "bitmap" : "bitmaps"}: ${parts.join(", ") || "none known"}${unread}`;
  const quiet = quietRepositories(known, prefix);
  const mends = quiet.map(({ id }) => `nbdpull doctor --retire ${id} --dry-run -- ${shellWord(domain.name)}`);
  const path = shellWord(disk.source ?? "IMAGE");
  mends.push(
    ...unknown.map((name) => `qemu-img bitmap --remove ${path} ${shellWord(name)} (while it is off)`),
  );
  if (mends.length === 0) return pass(cause, disk.target);
  const old = quiet.map(
    ({ id, days }) => `; the newest of repository ${id} is ${days} days old: is it no more?`,
  );
  return warn(`${cause}${old.join("")}`, mends.join("; "), disk.target);
}

/** Repositories of others whose newest checkpoint is old. */
function quietRepositories(
  checkpoints: readonly Checkpoint[],
  ownPrefix: string | undefined,
): { id: string; days: number }[] {
  const newest = new Map<string, number>();
  for (const { name, creationTime } of checkpoints) {
    const id = checkpointIdOf(name);
    if (id === undefined || checkpointPrefix(id) === ownPrefix) continue;
    newest.set(id, Math.max(newest.get(id) ?? 0, creationTime));
  }
  const now = Date.now() / 1000;
  return [...newest]
    .map(([id, time]) => ({ id, days: Math.floor((now - time) / DAY_S) }))
    .filter(({ days }) => days >= QUIET_DAYS);
}

function bitmapIn({ disks }: Checkpoint, { target }: DomainDisk): string | undefined {
  return disks.find(({ name }) => name === target)?.bitmap;
}

/**
 * The bitmaps in an image. A running QEMU stores new ones only when it ends, and those are checkpoints'.
 * @returns why they can't be read, or undefined if the image is elsewhere
 */
async function bitmapsInFile(
  { source: path, type, format }: DomainDisk,
  signal: AbortSignal | undefined,
): Promise<readonly string[] | string | undefined> {
  if (path === undefined || format === undefined || (type !== "file" && type !== "block")) return undefined;
  try {
    const { uid, gid } = await stat(path);
    const driver = type === "file" ? "file" : "host_device";
    const as = process.getuid?.() === 0 ? { uid, gid, groups: [] } : undefined;
    const file = { driver, filename: path, "read-only": true, locking: "off" };
    const info = await readInfo({ path, kind: type, format }, file, { as, cwd: "/", signal });
    return (info["format-specific"]?.data?.bitmaps ?? []).map(({ name }) => name);
  } catch (error) {
    signal?.throwIfAborted();
    return messageOf(error);
  }
}
