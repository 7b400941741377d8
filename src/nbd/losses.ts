/** What the failure of a connection means for the next one. */

import { ConnectionError, type NbdErrorCode, OptionError, RequestError, TlsError } from "./errors.js";

/** How the watchdog ends a connection. */
export const WATCHED_LOSSES: ReadonlySet<NbdErrorCode> = new Set([
  "NBD_IDLE_TIMEOUT",
  "NBD_REQUEST_TIMEOUT",
  "NBD_TOO_SLOW",
]);

/** Whether a failure concerns only the connection, not the request. */
export function isLoss(error: unknown): boolean {
  if (error instanceof RequestError) return error.errno === "ESHUTDOWN";
  if (!(error instanceof ConnectionError)) return false;
  return (
    error.code === "NBD_CLOSED_BY_SERVER" ||
    error.code === "NBD_CONNECTION_LOST" ||
    WATCHED_LOSSES.has(error.code)
  );
}

/** Whether another connection has led to something else than the first. */
export function isChange(error: unknown): boolean {
  return error instanceof ConnectionError && error.code === "NBD_EXPORT_CHANGED";
}

/** Whether another attempt to connect would fail in the same way. */
export function isHopeless(error: unknown): boolean {
  if (error instanceof ConnectionError) return isChange(error);
  if (error instanceof OptionError) return error.reply !== "SHUTDOWN";
  // A server that is restarting hangs up, too.
  return !(error instanceof TlsError && error.hangUp);
}
