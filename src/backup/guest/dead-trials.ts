/**
 * What a process that is killed leaves below the folder for scratch files, apart from the folder of its job.
 */
import { randomBytes } from "node:crypto";
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { parseJson } from "../base/json.js";
import { isAlive, processIdentity } from "../host/process-identity.js";
import { LocalPlace } from "./local-job-folder.js";

/**
 * Folders that were made only to see whether they can be; and those that were to become a job's or such a
 * one.
 */
const TRIAL = /^nbdpull-trial-[0-9a-f]{15}$/;
const FRESH = /^\.nbdpull-[A-Za-z0-9]{6}$/;
/**
 * A fresh folder gets its note at once. A trial without one is just being removed, or was when its process
 * died.
 */
const NOTED_WITHIN_MS = 60 * 60 * 1000;

/** A new name of a trial. It is as long as that of a job's folder, since a socket's path has a limit. */
export function trialName(): string {
  return `nbdpull-trial-${randomBytes(8).toString("hex").slice(1)}`;
}

/** Removes those below `parent` that are ours and whose process is dead. What can't be removed stays. */
export async function removeDeadTrials(parent: string): Promise<void> {
  const names = await readdir(parent).catch((): string[] => []);
  for (const name of names.filter((each) => TRIAL.test(each) || FRESH.test(each))) {
    await removeIfDead(parent, name).catch(() => undefined);
  }
}

async function removeIfDead(parent: string, name: string): Promise<void> {
  const path = join(parent, name);
  const place = new LocalPlace();
  const found = await place.look(path);
  if (!found?.isFolder || !found.ours) return;
  const owner = processIdentity.safeParse(parseJson(found.note ?? "")).data;
  const isLate = TRIAL.test(name) || (await lstat(path)).mtimeMs < Date.now() - NOTED_WITHIN_MS;
  const isDead = owner ? !(await isAlive(owner)) : isLate;
  if (isDead) await place.remove(path);
}
