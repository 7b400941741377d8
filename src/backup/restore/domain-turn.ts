import { turnOnHost } from "../host/turn-on-host.js";

/** A definition and a start take a second. */
const TURN_MS = 30_000;

/**
 * Between the look whether there is such a domain and its definition, another process may define it, and
 * libvirt would take ours for a change of that one. Processes in another network namespace, as in a container,
 * don't wait for each other.
 * @param uuid of the domain
 * @returns ends the turn of this process
 */
export async function turnFor(uuid: string): Promise<AsyncDisposable> {
  return await turnOnHost(`nbdpull-define-${uuid}`, TURN_MS);
}
