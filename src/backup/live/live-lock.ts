/** One process at a time works in the folder of a live restore. */
import { randomUUID } from "node:crypto";
import { PreconditionError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { isAlive, processIdentity, thisProcess } from "../host/process-identity.js";

/** Each process has an owner file of its own. */
const OWNER = /^\.nbdpull-live\.[0-9a-f-]{36}\.owner$/;
/** What writers that were killed have left. */
const HALF = /^\.\.nbdpull-live\..*\.[0-9a-f-]{36}$/;
/** A file that is younger may be one that is being made. */
const NEW_MS = 60_000;
const MOST_BYTES = 4096;

/**
 * Keeps other live restores out of the folder until it is disposed, or this process ends. Each one first
 * writes its own file and then looks for others: of two that begin at once, at least one sees the other.
 *
 * @throws {PreconditionError} `E_ADDRESS_IN_USE`: another process works there
 * @throws the file system's error
 */
export async function lockLive(folder: HeldFolder): Promise<AsyncDisposable> {
  const own = `.nbdpull-live.${randomUUID()}.owner`;
  const release = async (): Promise<void> => await folder.unlink(own);
  await folder.createWhole(own, JSON.stringify(await thisProcess()));
  try {
    for (const name of await folder.names()) {
      if (HALF.test(name)) await sweep(folder, name);
      if (name !== own && OWNER.test(name)) await refuseLiving(folder, name);
    }
  } catch (error) {
    await release();
    throw error;
  }
  return { [Symbol.asyncDispose]: release };
}

async function sweep(folder: HeldFolder, name: string): Promise<void> {
  const found = await folder.find(name);
  if (found && Date.now() - found.mtimeMs > NEW_MS) await folder.unlink(name);
}

async function refuseLiving(folder: HeldFolder, name: string): Promise<void> {
  let text: string;
  try {
    text = (await folder.read(name, MOST_BYTES)).toString("utf8");
  } catch (error) {
    if (isMissing(error)) return;
    throw error;
  }
  const { data } = processIdentity.safeParse(parseJson(text));
  if (data && (await isAlive(data))) {
    const path = `${folder.path}/${name}`;
    const message = `process ${data.pid} of ${data.host} does a live restore in ${folder.path}: wait for its end, or name another folder. Only if that host is gone, remove ${path}`;
    throw new PreconditionError("E_ADDRESS_IN_USE", message, { details: { path } });
  }
  await folder.unlink(name);
}
