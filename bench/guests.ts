/** Scenes of workloads that are about whole backups: a domain of libvirt, or what was made of it. */

import { copyFile, mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import pLimit from "p-limit";
import { fillRandom } from "./data.js";
import { DISK, Domain } from "./domain.js";
import { evenly, scattered } from "./extents.js";
import { type Image, makeRaw, qemuIo } from "./images.js";
import { convert, type Disk, type Inputs } from "./inputs.js";
import { missingOf, PROGRAMS } from "./programs.js";
import { scaled } from "./scale.js";
import type { Command, Guest, Scene, Stage, Stored } from "./workload.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

const SMALL_DISK = 64 * MiB;
const STARTS_AT_ONCE = 4;
const CHANGES = 800;
const CHANGE_BYTES = 128 * KiB;

/** A disk, and the same once its guest has written. */
interface ChangingDisk extends Disk {
  readonly after: Image;
  /** What the guest does, in the words of `qemu-io`. */
  readonly changes: readonly string[];
}

/** A domain of its own for each run: virtnbdbackup refuses one that has others' checkpoints. */
export async function guestScene({ folder, inputs, scale }: Stage): Promise<Scene> {
  return { sources: [], ...(await startGuest(await changingDisk(inputs, scale), folder)) };
}

/** Small domains, which one run is to back up together: each with a copy of the same disk. */
export async function manyGuestsScene({ folder, inputs, scale }: Stage, count: number): Promise<Scene> {
  const disk = await inputs.make("small", async (place): Promise<ChangingDisk> => {
    const virtualSize = scaled(SMALL_DISK, scale, 8 * MiB);
    const quarter = evenly(virtualSize, 4, virtualSize / 16);
    const image = await convert(await makeRaw(join(place, "disk.raw"), virtualSize, quarter), place);
    return { image, virtualSize, after: image, changes: [] };
  });
  const scenes: Awaited<ReturnType<typeof startGuest>>[] = [];
  const end = async (): Promise<void> => {
    await Promise.all(scenes.map((scene) => scene[Symbol.asyncDispose]()));
  };
  // libvirt waits for each QEMU to answer, which two processors can start several of.
  const atOnce = pLimit(STARTS_AT_ONCE);
  const started = await Promise.allSettled(
    Array.from({ length: count }, (_, index) =>
      atOnce(async () => {
        scenes.push(await startGuest(disk, folder, `guest-${index}`));
      }),
    ),
  );
  const failed = started.find((each) => each.status === "rejected");
  if (failed) {
    await end();
    throw failed.reason;
  }
  return { sources: [], guests: scenes.map(({ guest }) => guest), [Symbol.asyncDispose]: end };
}

/** How a tool is told to back a guest up into a folder. */
export interface BackupCommands {
  full(guest: Guest, to: string): Command;
  incremental(guest: Guest, to: string): Command;
}

/** A full backup of a guest and its later changes, the basis of an increment. None of this is measured. */
export async function fullThenChange(tool: BackupCommands, guest: Guest, to: string): Promise<void> {
  await run(tool.full(guest, to));
  await guest.change();
}

/**
 * Prepares a restore: a full backup and an increment, by each tool of its own domain. No domain runs
 * afterwards.
 */
export async function backedUpScene(
  { folder: work, inputs, scale }: Stage,
  tools: { readonly nbdpull: BackupCommands; readonly virtnbdbackup: BackupCommands },
): Promise<Scene> {
  const disk = await changingDisk(inputs, scale);
  const { stored } = await inputs.make("libvirt-backups", async (folder) => {
    const take = async (tool: BackupCommands, name: string) => {
      const to = join(folder, name);
      await using scene = await startGuest(disk, work);
      await fullThenChange(tool, scene.guest, to);
      await run(tool.incremental(scene.guest, to));
      return { to, domain: scene.guest.domain };
    };
    const ours = await take(tools.nbdpull, "repository");
    const isMissing = (await missingOf([PROGRAMS.virtnbdbackup])).length > 0;
    const theirs = isMissing ? undefined : await take(tools.virtnbdbackup, "virtnbdbackup");
    const stored: Stored = {
      repository: ours.to,
      domain: ours.domain,
      disk: DISK,
      images: [],
      expected: disk.after,
      virtnbdbackup: theirs?.to,
    };
    return { ...disk, stored };
  });
  return { sources: [], stored, [Symbol.asyncDispose]: async () => undefined };
}

/** A disk of 2 GiB, 1 GiB of it data; 100 MiB are written to, in pieces of 128 KiB all over the disk. */
function changingDisk(inputs: Inputs, scale: number): Promise<ChangingDisk> {
  return inputs.make("changing", async (folder) => {
    const virtualSize = scaled(2 * GiB, scale, 32 * MiB);
    const half = evenly(virtualSize, virtualSize / (8 * MiB), 4 * MiB);
    const image = await convert(await makeRaw(join(folder, "disk.raw"), virtualSize, half), folder);
    const changes: string[] = [];
    for (const { offset, length } of scattered(virtualSize, scaled(CHANGES, scale, 1), CHANGE_BYTES)) {
      const path = join(folder, `change-${offset}`);
      const bytes = Buffer.alloc(length);
      fillRandom(bytes, offset, 2);
      await writeFile(path, bytes);
      changes.push(`write -q -s ${path} ${offset} ${length}`);
    }
    const after: Image = { path: join(folder, "after.qcow2"), format: "qcow2" };
    await copyFile(image.path, after.path);
    await qemuIo(after, changes);
    return { image, virtualSize, after, changes };
  });
}

/** @param parent of the folder that the guest gets: a short path, since sockets are in it */
async function startGuest(
  { image, after, changes }: ChangingDisk,
  parent: string,
  called = "guest",
): Promise<Pick<Scene, "serverPid"> & { readonly guest: Guest } & AsyncDisposable> {
  const folder = join(parent, called);
  await mkdir(folder);
  const own: Image = { path: join(folder, "disk.qcow2"), format: "qcow2" };
  await copyFile(image.path, own.path);
  const domain = await Domain.start(own, folder);
  const change = async (): Promise<void> => {
    await domain.idle();
    await domain.io(changes);
  };
  return {
    guest: { domain: domain.name, disk: DISK, folder, before: image, after, change },
    serverPid: domain.pid,
    [Symbol.asyncDispose]: async () => {
      await domain[Symbol.asyncDispose]();
      await rm(folder, { recursive: true });
    },
  };
}

/** If the harness is ended this ends at once: an orderly end could put files where all was removed. */
async function run({ program, args }: Command): Promise<void> {
  await execa(program, args, { killSignal: "SIGKILL" });
}
