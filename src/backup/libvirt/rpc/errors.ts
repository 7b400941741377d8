/** What can become of a call other than its answer. Pure. */

import { readDomain } from "./wire-objects.js";
import type { XdrReader } from "./xdr.js";

/** The error that libvirt answered with (`remote_error`). */
export class RpcError extends Error {
  override readonly name = "RpcError";
  /** virErrorNumber. */
  readonly number: number;

  constructor(number: number, message: string) {
    super(message);
    this.number = number;
  }
}

/** The connection ended, or was never made. */
export class LostError extends Error {
  override readonly name = "LostError";
}

/** The connection ended before the call was sent, which can therefore be made over another one. */
export class UnsentError extends LostError {
  /** What becomes of a call that was not sent, if its connection ended for this reason. */
  static of(reason: unknown): unknown {
    return reason instanceof LostError ? new UnsentError(reason.message, { cause: reason }) : reason;
  }
}

/**
 * The answer did not come in time. If the call was sent, the answer may still come, and what was asked for
 * may have been done.
 */
export class LateError extends Error {
  override readonly name = "LateError";
  /** False: libvirt has heard nothing of it, which can therefore be asked for again. */
  readonly wasSent: boolean;

  constructor(message: string, options: { readonly wasSent: boolean }) {
    super(message);
    this.wasSent = options.wasSent;
  }
}

/** The numbers that this program tells apart (`include/libvirt/virterror.h`). */
export const NUMBER = {
  internal: 1,
  noSupport: 3,
  noConnect: 5,
  operationDenied: 29,
  noDomain: 42,
  noNetwork: 43,
  authFailed: 45,
  noStoragePool: 49,
  noStorageVolume: 50,
  operationInvalid: 55,
  configUnsupported: 67,
  operationTimeout: 68,
  argumentUnsupported: 74,
  authCancelled: 79,
  operationUnsupported: 84,
  agentUnresponsive: 86,
  accessDenied: 88,
  cpuIncompatible: 91,
  authUnavailable: 94,
  noCheckpoint: 103,
  noBackup: 104,
  checkpointInconsistent: 109,
} as const;

/** Characters of a message; libvirt's own have 1,024 at most, and may be the words of a guest's agent. */
const MOST = 4096;

export function decodeError(payload: XdrReader): RpcError {
  const number = payload.int();
  payload.int();
  const message = payload.optionalString() ?? "it gave no reason";
  // level, dom, str1 to str3, int1, int2, net: all of it is in the message.
  payload.int();
  payload.optional(() => readDomain(payload));
  for (let text = 1; text <= 3; text += 1) payload.optionalString();
  payload.int();
  payload.int();
  payload.optional(() => {
    payload.string();
    payload.fixed(16);
  });
  payload.end();
  return new RpcError(number, message.slice(0, MOST).trim());
}
