/** The note beside a point that a guest runs on it, which can fail without any harm to the guest. */
import { hasCode, messageOf } from "../base/errors.js";
import { forgetLive, noteLive } from "../repository/live-note.js";
import type { Repository } from "../repository/repository.js";
import type { LiveState } from "./live-state.js";

interface Beside {
  readonly repository: Repository;
  readonly domain: string;
  readonly onEvent: (event: { readonly type: "warning"; readonly message: string }) => void;
}

/**
 * A prune must keep the point, also while this process is dead.
 * @throws {DamageError} `E_MANIFEST`: one was quicker, in an object store, where it waits for no reader
 */
export async function noteBeside(
  { repository, domain, onEvent }: Beside,
  state: Pick<LiveState, "point" | "domain">,
  place: string,
): Promise<void> {
  try {
    await using point = await repository.holdRecords(domain, state.point);
    await noteLive(point, { uuid: state.domain.uuid, disks: place });
  } catch (error) {
    if (repository.isInStore && hasCode(error, "E_MANIFEST")) throw error;
    const message = `it can't be noted in the repository that a guest runs on point ${state.point} (${messageOf(error)}): let no prune remove it before this has ended`;
    onEvent({ type: "warning", message });
  }
}

/** The point may be gone. */
export async function forgetBeside(
  { repository, domain, onEvent }: Beside,
  state: Pick<LiveState, "point" | "domain">,
): Promise<void> {
  try {
    if (!(await repository.hasPoint(domain, state.point))) return;
    await using point = await repository.holdRecords(domain, state.point);
    await forgetLive(point, state.domain.uuid);
  } catch (error) {
    const message = `the note beside point ${state.point} that a guest runs on it is left (${messageOf(error)}): prunes keep the point until .live.${state.domain.uuid}.json is removed there`;
    onEvent({ type: "warning", message });
  }
}
