/** Checks the repository, and the free space for new points. */

import { dirname, resolve } from "node:path";
import prettyBytes from "pretty-bytes";
import { messageOf } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import { exists } from "../host/durable-files.js";
import { freeBytes } from "../host/free-bytes.js";
import { HeldFolder } from "../host/held-folder.js";
import { foldersNamed } from "../repository/domain-folder.js";
import { lookAtLock } from "../repository/domain-lock.js";
import { judgePoints, obstacleText } from "../repository/judged-points.js";
import { domainsAmong, ownersOf } from "../repository/point-owners.js";
import { aheadText, fixClockCommand, pointsAhead } from "../repository/points-ahead.js";
import { readJournal } from "../repository/prune-journal.js";
import type { Repository } from "../repository/repository.js";
import { unsafeStore } from "../repository/unsafe-store.js";
import { namesStore } from "../storage/open-store.js";
import { type Found, fail, pass, type Subject, warn } from "./check.js";

/** The least bytes that a point takes: manifest, digests and tables. */
const LEAST = 1024 ** 2;

/** Checks whether points can be written, and how much space is free for them. */
export async function lookAtTarget({
  repository,
  repositoryPath,
  forecast,
}: Subject): Promise<readonly Found[]> {
  if (repositoryPath === undefined) return [];
  if (namesStore(repositoryPath)) {
    if (!repository) return [];
    const abilities = await repository.recordedAbilities();
    const unsafe = abilities && unsafeStore(abilities);
    return [unsafe === undefined ? pass(`${repositoryPath} lies in an object store`) : warn(unsafe)];
  }
  const folder = await nearestFolder(resolve(repositoryPath));
  try {
    await using held = await HeldFolder.open(folder);
    await held.assertWritable();
  } catch (cause) {
    const reason = messageOf(cause);
    return [
      fail("E_REPOSITORY_READ_ONLY", `no points can be written to ${repositoryPath} (${reason})`, {
        advice: "mount it writable, or run it as a user who may",
        mend: `findmnt -T ${shellWord(folder)}; ls -ld ${shellWord(folder)}`,
        details: { path: folder },
      }),
    ];
  }
  const free = await freeBytes(folder);
  const what = `${repositoryPath} has ${prettyBytes(free, { binary: true })} free`;
  const mend = `nbdpull prune ${shellWord(repositoryPath)} --keep-last 7 --dry-run`;
  if (free < LEAST) {
    const advice = "make room, or let old points go (nbdpull prune)";
    return [fail("E_NO_ROOM", what, { advice, mend, details: { path: folder, freeBytes: free } })];
  }
  if (!forecast) return [pass(what)];
  const read = [...forecast.sizes.values()].reduce((total, size) => total + size, 0);
  const about = `and the next point is up to some ${prettyBytes(read, { binary: true })}`;
  // Zeroes and compressed data take less, so the point may still fit.
  if (read > free) return [warn(`${what}, ${about}`, mend)];
  return [pass(`${what}, ${about}`)];
}

/** The folder itself, or the nearest existing folder above it. */
async function nearestFolder(path: string): Promise<string> {
  for (let folder = path; ; folder = dirname(folder)) {
    if ((await exists(folder)) || folder === "/") return folder;
  }
}

/** Checks every manifest, and looks for unfinished prunes, leftover locks and running writers. */
export async function lookAtPoints({
  repository,
  repositoryPath,
  isRepositoryUnknown,
  domain,
}: Subject): Promise<readonly Found[]> {
  if (!repository) {
    if (repositoryPath === undefined || isRepositoryUnknown) return [];
    const cause = `there is no repository at ${repositoryPath}: mount it, or make a new one; a backup makes none without --create`;
    return [warn(cause, `nbdpull init ${shellWord(repositoryPath)}`)];
  }
  const domains = domain ? await foldersNamed(repository, domain.name) : await repository.domains();
  if (domains.length === 0) return [pass("there are none yet")];
  const found: Found[] = [];
  for (const name of domains) found.push(...(await lookAtDomain(repository, name)));
  return found;
}

async function lookAtDomain(repository: Repository, domain: string): Promise<Found[]> {
  const found: Found[] = [];
  const mend = `nbdpull verify ${shellWord(repository.path)} ${shellWord(domain)}`;
  const points = await repository.points(domain, (error) => {
    found.push({ of: domain, status: "fail", cause: error.message, mend, error });
  });
  const newest = points.at(-1);
  const owners = domainsAmong(ownersOf(points));
  if (owners.length > 1) {
    const uuids = owners.map((uuid) => uuid ?? "no UUID").join(", ");
    found.push(pass(`it has points of ${owners.length} domains of this name (${uuids})`, domain));
  }
  await using folder = await repository.openDomain(domain);
  const journal = folder && (await readJournal(folder));
  // Files change their names meanwhile; the next command finishes it first.
  const judged = journal?.phase === "publish" ? [] : await judgePoints(repository, domain);
  for (const { id, manifest, obstacles } of judged) {
    const [first, ...others] = obstacles;
    if (!first || manifest === undefined) continue;
    const more = others.length === 0 ? "" : ` (and ${others.length} more)`;
    const cause = `point ${id} can't be restored, and no increment is based on it: ${obstacleText(first, id)}${more}`;
    const repair = `nbdpull repair ${shellWord(repository.path)} ${shellWord(domain)}`;
    found.push(warn(cause, repair, domain));
  }
  const now = new Date();
  const ahead = folder ? await pointsAhead(folder, await repository.pointIds(domain), now) : [];
  if (folder && ahead.length > 0) {
    const fix = repository.isInStore ? undefined : fixClockCommand(folder);
    found.push(warn(aheadText(ahead, now), fix, domain));
  }
  if (journal) {
    found.push(
      warn(`the last prune was interrupted: the next backup finishes or undoes it`, undefined, domain),
    );
  }
  // Of a lease in a store only whoever waits for it learns whether it is still renewed.
  if (!repository.isInStore) found.push(...(await lookAtDomainLock(repository, domain)));
  if (found.every(({ status }) => status === "pass"))
    found.push(pass(`${points.length}, newest ${newest?.id}`, domain));
  return found;
}

async function lookAtDomainLock(repository: Repository, domain: string): Promise<Found[]> {
  await using folder = await repository.holdDomain(domain);
  const lock = folder && (await lookAtLock(folder));
  if (lock === undefined) return [];
  if (lock === "held") {
    return [warn("another nbdpull is writing its points", `fuser -v ${folder?.path}`, domain)];
  }
  return [pass("its lock was left by a process that died, and the next one takes it over", domain)];
}
