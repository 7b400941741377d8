/** Errors for requests that are refused before anything is sent. */

import { RequestError, type RequestErrorCode } from "./errors.js";
import type { BlockLimits } from "./export-info.js";
import { commandName } from "./wire/requests.js";

export function refused(
  code: RequestErrorCode,
  command: number,
  offset: number,
  length: number,
  reason: string,
): RequestError {
  const name = commandName(command);
  const message = `no ${name} at offset ${offset}, length ${length}: ${reason}`;
  return new RequestError(code, message, {
    command: name,
    offset,
    length,
    errno: code === "NBD_READ_ONLY" ? "EPERM" : code === "NBD_NOT_OFFERED" ? "ENOTSUP" : "EINVAL",
    serverText: "",
  });
}

/** @throws {RequestError} NBD_OUT_OF_RANGE */
export function checkRange({ size }: BlockLimits, command: number, offset: number, length: number): void {
  const isSane = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
  if (isSane && offset + length <= size) return;
  throw refused("NBD_OUT_OF_RANGE", command, offset, length, `the export has ${size} bytes`);
}
