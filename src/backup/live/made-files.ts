/** The files of a live restore, told from those that others have made under the same names. */
import { basename } from "node:path";
import { formatNbdUri } from "../../nbd/index.js";
import { BackupError, PreconditionError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { openPlain } from "../host/plain-files.js";
import type { Finished } from "../host/publish.js";
import { HEADER_FIRST_BYTES, parseHeader, type Qcow2Header } from "../qcow2/header.js";
import type { LiveState } from "./live-state.js";

type MadeFile = LiveState["made"][number];

/** What is about to get its name. */
export async function identify(folder: HeldFolder, finished: readonly Finished[]): Promise<MadeFile[]> {
  return await Promise.all(
    finished.map(async ({ temporary, final }) => {
      const id = await identityOf(folder, basename(temporary));
      if (id === undefined) throw new RangeError(`${temporary} is missing`);
      return { name: basename(final), id };
    }),
  );
}

/** Removes them. A file that somebody else has put in the place of one stays. */
export async function removeMade(
  folder: HeldFolder,
  { made, temporaries }: Pick<LiveState, "made" | "temporaries">,
): Promise<void> {
  // Their names are random, so they are nobody else's.
  for (const name of temporaries) await folder.unlink(name);
  for (const { name, id } of made) if ((await identityOf(folder, name)) === id) await folder.unlink(name);
}

/** Removes a file if it is there, and is what got this name from a live restore. */
export async function removeOurs(
  folder: HeldFolder,
  state: Pick<LiveState, "made">,
  name: string,
): Promise<void> {
  if (await isOurs(folder, state, name)) await folder.unlink(name);
}

/** Whether a file is there that got this name from a live restore. */
export async function isOurs(
  folder: HeldFolder,
  { made }: Pick<LiveState, "made">,
  name: string,
): Promise<boolean> {
  const known = made.findLast((each) => each.name === name);
  const found = await identityOf(folder, name);
  // The number of the device may be another one after the host was restarted.
  return known !== undefined && inodeIn(known.id) === inodeIn(found);
}

async function identityOf(folder: HeldFolder, name: string): Promise<string | undefined> {
  const found = await folder.find(name);
  return found && `${found.dev}:${found.ino}`;
}

const HEADER_BYTES = 20;
const MAGIC = 0x514649fb;
const BACKING_OFFSET = 8;

/**
 * Makes sure that the images in a folder are those that a live restore made there, and are based on nothing
 * else. The user that QEMU runs as can write to them, and libvirt gives it every file that a header names.
 * @param socket where their exports are served, which the backing files' names are made of
 * @throws {PreconditionError} `E_LIVE_STATE`: one is another file, is no qcow2 image, keeps its data in
 *   another file, or is based on something else
 */
export async function proveImages(
  folder: HeldFolder,
  { disks, made, domain }: Pick<LiveState, "disks" | "made" | "domain">,
  socket: string,
): Promise<void> {
  const images = disks.flatMap(({ name, file, whole, isSwitched = false }) => {
    const all = isSwitched ? [] : [{ name, file, isMade: true, isBased: true }];
    return whole ? [...all, { name, file: whole.file, isMade: isSwitched, isBased: false }] : all;
  });
  for (const { name, file, isMade, isBased } of images) {
    // A whole image that is not made yet, or of which it is not known.
    if (!isMade && !(await isOurs(folder, { made }, file))) continue;
    const refusal = (why: string): PreconditionError => {
      const path = `${folder.path}/${file}`;
      const message = `${path} ${why}, so it is not what the live restore of ${domain.name} made there: nothing was changed. Put the image back that it made, or begin again in another folder`;
      return new PreconditionError("E_LIVE_STATE", message, { details: { path } });
    };
    const isKnown = made.some((each) => each.name === file);
    if (isKnown && !(await isOurs(folder, { made }, file))) throw refusal("is another file");
    const { backingFile, backingFormat } = await headerOf(folder, file).catch((error: unknown) => {
      if (!(error instanceof BackupError)) throw error;
      throw refusal(`is no qcow2 image as it makes them (${error.message})`);
    });
    if (backingFile === undefined) continue;
    const served = formatNbdUri({ transport: { kind: "unix", path: socket }, exportName: name });
    if (backingFile !== served || !isBased) throw refusal(`is based on ${backingFile}`);
    if (backingFormat !== "raw") throw refusal(`takes its base for ${backingFormat ?? "what it looks like"}`);
  }
}

function inodeIn(id: string | undefined): string | undefined {
  return id?.slice(id.indexOf(":") + 1);
}

/** @throws {BackupError} it is no qcow2 image, or one with features that none of ours has */
async function headerOf(folder: HeldFolder, name: string): Promise<Qcow2Header> {
  await using file = await openPlain(folder.at(name));
  const head = Buffer.alloc(HEADER_FIRST_BYTES);
  const { bytesRead } = await file.read(head, 0, head.length, 0);
  // Afterwards: what the header names may just have been added by a guest that runs.
  const { size } = await file.stat();
  return parseHeader(head.subarray(0, bytesRead), size);
}

/** Whether an image in the folder is a qcow2 image that is based on nothing. */
export async function isFilled(folder: HeldFolder, name: string): Promise<boolean> {
  return await withImage(folder, name, async () => undefined);
}

/**
 * Has an image that was filled on stable storage.
 * @throws {PreconditionError} `E_LIVE_STATE`: it is still based on something
 */
export async function flushFilled(folder: HeldFolder, name: string): Promise<void> {
  if (await withImage(folder, name, (file) => file.sync())) return;
  const path = `${folder.path}/${name}`;
  const message = `${path} is still based on the restore point, though its disk is not, as libvirt says: does the guest run on another image? The live restore hasn't ended: the same command goes on`;
  throw new PreconditionError("E_LIVE_STATE", message, { details: { path } });
}

async function withImage(
  folder: HeldFolder,
  name: string,
  work: (file: Awaited<ReturnType<typeof openPlain>>) => Promise<void>,
): Promise<boolean> {
  try {
    await using file = await openPlain(folder.at(name));
    const header = Buffer.alloc(HEADER_BYTES);
    const { bytesRead } = await file.read(header, 0, HEADER_BYTES, 0);
    const isImage = bytesRead === HEADER_BYTES && header.readUInt32BE(0) === MAGIC;
    if (!isImage || header.readBigUInt64BE(BACKING_OFFSET) !== 0n) return false;
    await work(file);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}
