import { Connection } from "./connection.js";
import { dial } from "./dial.js";
import { negotiate } from "./negotiate.js";
import type { Settings } from "./settings.js";

/**
 * One more connection to the export that the settings name.
 * @param signal ends connecting and the handshake
 * @param stop ends connecting, but no handshake that has begun
 * @throws {NbdError} after closing the connection
 */
export async function openConnection(
  settings: Settings,
  signal: AbortSignal | undefined,
  stop?: AbortSignal,
): Promise<Connection> {
  const { address, secure, metaContexts, optionalContexts, listContexts } = settings;
  const wish = {
    exportName: address.exportName,
    tls: secure !== undefined,
    metaContexts,
    optionalContexts,
    listContexts,
  };
  const { transport, result, rest } = await dial({ ...settings, signal, stop }, negotiate(wish));
  return new Connection(transport, result, rest, settings);
}
