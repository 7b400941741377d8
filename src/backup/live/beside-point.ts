/** The note beside a point that a guest runs on it, which can fail without any harm to the guest. */
import { BackupError, hasCode, messageOf } from "../base/errors.js";
import { forgetLive, noteLive } from "../repository/live-note.js";
import type { Repository } from "../repository/repository.js";
import type { PointServer } from "../serve/serve.js";
import type { LiveState } from "./live-state.js";

interface Beside {
  readonly repository: Repository;
  readonly domain: string;
  readonly onEvent: (event: { readonly type: "warning"; readonly message: string }) => void;
}

interface Noted {
  readonly place: string;
  /** It has opened the images of the point. */
  readonly server: Pick<PointServer, "assertUnpruned">;
  /**
   * Whether the guest may have run already: then it goes on if nobody knows whether a prune removes the
   * point.
   */
  readonly hasRun: boolean;
}

/**
 * A prune must keep the point, also while this process is dead. One that removes the point from an object
 * store waits for no reader, and it may have ended before the note was there.
 * @throws {DamageError} `E_MANIFEST`: a prune was quicker, in an object store
 * @throws {PreconditionError} `E_BEING_REMOVED`: one may be, in an object store
 * @throws {BackupError} `E_PRUNED_MEANWHILE`: one has changed points since the images were opened; the
 *   store's failure: nobody knows whether one is
 */
export async function noteBeside(
  { repository, domain, onEvent }: Beside,
  state: Pick<LiveState, "point" | "domain" | "note">,
  { place, server, hasRun }: Noted,
): Promise<void> {
  try {
    await using point = await repository.holdRecords(domain, state.point);
    await noteLive(point, { uuid: nameOf(state), disks: place });
    await server.assertUnpruned();
  } catch (error) {
    if (hasCode(error, "E_PRUNED_MEANWHILE")) throw hasRun ? withNote(error, state) : error;
    if (repository.isInStore && (hasRun ? hasCode(error, "E_MANIFEST") : !isRefused(error))) throw error;
    const message = `it can't be noted in the repository that a guest runs on point ${state.point} (${messageOf(error)}): let no prune remove it before this has ended`;
    onEvent({ type: "warning", message });
  }
}

/** Whether these credentials may only read, which is enough for a restore. */
function isRefused(error: unknown): boolean {
  return hasCode(error, "E_S3_ACCESS");
}

/** The point may be gone. The signal that ends requests to an object store may have been given. */
export async function forgetBeside(
  { repository, domain, onEvent }: Beside,
  state: Pick<LiveState, "point" | "domain" | "note">,
): Promise<void> {
  try {
    if (!repository.isInStore && !(await repository.hasPoint(domain, state.point))) return;
    await using point = await repository.holdRecords(domain, state.point);
    await forgetLive(point, nameOf(state));
  } catch (error) {
    const message = `the note beside point ${state.point} that a guest runs on it is left (${messageOf(error)}): prunes keep the point until .live.${nameOf(state)}.json is removed there`;
    onEvent({ type: "warning", message });
  }
}

/**
 * Where the note is; it ends a sentence that tells what a live restore leaves which can't go on, since for
 * its sake prunes keep the point. With credentials that may only read none was made.
 */
export function noteOf(state: Pick<LiveState, "point" | "domain" | "note">): string {
  return `.live.${nameOf(state)}.json beside point ${state.point}, which keeps prunes from removing that`;
}

function withNote(error: unknown, state: Parameters<typeof noteOf>[0]): unknown {
  if (!(error instanceof BackupError)) return error;
  return error.of(`${error.message}. If the guest is given up, remove ${noteOf(state)}`, {});
}

/** Two hosts may have a guest of one identity run from one point: each removes its own note. */
function nameOf({ domain, note }: Pick<LiveState, "domain" | "note">): string {
  return note ?? domain.uuid;
}
