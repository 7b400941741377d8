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

const HEADER_BYTES = 16;
const MAGIC = 0x514649fb;
const BACKING_OFFSET = 8;

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
