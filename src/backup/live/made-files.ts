/** The files of a live restore, told from those that others have made under the same names. */
import { basename } from "node:path";
import { PreconditionError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { openPlain } from "../host/plain-files.js";
import type { Finished } from "../host/publish.js";
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

async function identityOf(folder: HeldFolder, name: string): Promise<string | undefined> {
  const found = await folder.find(name);
  return found && `${found.dev}:${found.ino}`;
}

const HEADER_BYTES = 20;
const MAGIC = 0x514649fb;
const BACKING_OFFSET = 8;
const BACKING_LENGTH = 16;
/** Of the name of a backing file, as qcow2 limits it. */
const MOST_NAME = 1023;

/**
 * Makes sure that the images in a folder are those that a live restore made there, and are based on nothing
 * else.
 * @param socket where their exports are served: a part of the backing files' names
 * @throws {PreconditionError} `E_LIVE_STATE`: one is another file, is no qcow2 image, or is based on
 *   something else
 */
export async function proveImages(
  folder: HeldFolder,
  { disks, made, domain }: Pick<LiveState, "disks" | "made" | "domain">,
  socket: string,
): Promise<void> {
  for (const { file } of disks) {
    const refusal = (why: string): PreconditionError => {
      const path = `${folder.path}/${file}`;
      const message = `${path} ${why}, so it is not what the live restore of ${domain.name} made there: nothing was changed. Put the image back that it made, or begin again in another folder`;
      return new PreconditionError("E_LIVE_STATE", message, { details: { path } });
    };
    const known = made.find(({ name }) => name === file);
    // The number of the device may be another one after the host was restarted.
    const found = await identityOf(folder, file);
    if (known && inodeIn(known.id) !== inodeIn(found)) throw refusal("is another file");
    const backing = await backingOf(folder, file);
    if (backing === undefined) throw refusal("is no qcow2 image");
    if (
      backing !== "" &&
      !backing.includes(encodeURI(socket)) &&
      !backing.includes(encodeURIComponent(socket))
    ) {
      throw refusal(`is based on ${backing}`);
    }
  }
}

function inodeIn(id: string | undefined): string | undefined {
  return id?.slice(id.indexOf(":") + 1);
}

/** @returns the name of an image's backing file, empty if it has none; undefined: it is no qcow2 image */
async function backingOf(folder: HeldFolder, name: string): Promise<string | undefined> {
  await using file = await openPlain(folder.at(name));
  const header = Buffer.alloc(HEADER_BYTES);
  const { bytesRead } = await file.read(header, 0, HEADER_BYTES, 0);
  if (bytesRead !== HEADER_BYTES || header.readUInt32BE(0) !== MAGIC) return undefined;
  const offset = header.readBigUInt64BE(BACKING_OFFSET);
  const length = header.readUInt32BE(BACKING_LENGTH);
  if (offset === 0n) return "";
  if (length > MOST_NAME) return undefined;
  const text = Buffer.alloc(length);
  await file.read(text, 0, length, Number(offset));
  return text.toString("utf8");
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
