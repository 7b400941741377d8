import { randomUUID } from "node:crypto";
import pLimit from "p-limit";
import { allOrNone } from "../base/in-parallel.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { Guard } from "../image/image-file.js";
import { hasJournal, JOURNAL_FOLDER } from "./prune-journal.js";

/** Suffix of a point that is being made. */
export const PARTIAL = ".partial";
/** Prefix of what is being removed. */
const DEAD = ".dead-";
/**
 * What this process removes at a time, of all domains. The system takes its time to free a large image, one
 * processor for each. Others of libuv's four threads stay free, so that the locks are renewed.
 */
const REMOVED_AT_ONCE = 2;
const inTurn = pLimit(REMOVED_AT_ONCE);

/** Whether a folder of this name is a point that is being made, or that a dead run has left. */
export function isPartialPoint(name: string): boolean {
  return name.startsWith(".") && name.endsWith(PARTIAL);
}

/**
 * Removes partial points and aborted prunes. The caller holds the domain's lock, so a partial point belongs
 * to a run that died, or that lost its lock while it was suspended. It is renamed first, so that such a run
 * can't commit it later. A prune without a journal has changed nothing.
 * @param isKept whether a partial point of that name stays; default: none
 */
export async function removeLeftovers(
  domain: HeldFolder,
  isKept: (name: string) => boolean = () => false,
): Promise<void> {
  for (const name of await domain.names()) {
    const isPartial = isPartialPoint(name) && !isKept(name);
    const isAborted = name === JOURNAL_FOLDER && !(await hasJournal(domain));
    if (isPartial || isAborted) await setAside(domain, name);
  }
  await removeDead(domain);
}

/** Removes the journal and everything that the prune has prepared. */
export async function removeJournal(domain: HeldFolder, guard: Guard): Promise<void> {
  await guard();
  await setAside(domain, JOURNAL_FOLDER);
  await domain.sync();
  await removeDead(domain);
}

/** Gives something the name of what will be removed. @returns that name */
export async function setAside(domain: HeldFolder, name: string): Promise<string> {
  const aside = `${DEAD}${name.replace(/^\./, "")}-${randomUUID()}`;
  await domain.rename(name, aside);
  return aside;
}

export async function removeDead(domain: HeldFolder): Promise<void> {
  const dead = (await domain.names()).filter((name) => name.startsWith(DEAD));
  await allOrNone(dead, REMOVED_AT_ONCE, undefined, (name, signal) =>
    inTurn(async () => {
      signal.throwIfAborted();
      await domain.remove(name);
    }),
  );
}
