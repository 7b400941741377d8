import { anySignal } from "../../../nbd/index.js";
import { PreconditionError, UsageError } from "../../base/errors.js";
import { type Keepalive, RpcConnection } from "./connection.js";
import type { DaemonAddress } from "./daemon-address.js";
import { dial } from "./dial.js";
import { LateError, LostError, NUMBER, RpcError } from "./errors.js";
import { AUTH_LIST, AUTH_POLKIT, CONNECT_OPEN, CONNECT_SUPPORTS_FEATURE } from "./procedures.js";

/** `enum remote_auth_type`. */
const AUTH = { none: 0, sasl: 1, polkit: 2 };
/** VIR_DRV_FEATURE_PROGRAM_KEEPALIVE. */
const KEEPALIVE_FEATURE = 11;
/** virErrorNumber: the user may not. */
const DENIED: readonly number[] = [
  ...[NUMBER.authFailed, NUMBER.authCancelled, NUMBER.authUnavailable],
  ...[NUMBER.accessDenied, NUMBER.operationDenied],
];
/** There is no driver for such a URI. */
const UNKNOWN: readonly number[] = [NUMBER.noSupport, NUMBER.noConnect];

/**
 * Connects to a daemon and has it open its hypervisor:
 *
 *     dial -> AUTH_LIST -> (AUTH_POLKIT) -> CONNECT_OPEN -> CONNECT_SUPPORTS_FEATURE -> calls
 *
 * @throws {LostError} nobody answers there
 * @throws {LateError} it took longer than `timeoutMs` in all, and was asked for nothing yet
 * @throws {PreconditionError} `E_LIBVIRT_ACCESS`, `E_LIBVIRT_OWNER`, `E_LIBVIRT_SASL`, `E_LIBVIRT_TLS`,
 *   `E_NO_SSH`
 * @throws {UsageError} `E_LIBVIRT_URI`: libvirt can't open this URI
 * @throws {UnreadableError} it isn't libvirt
 * @throws the signal's reason
 */
export async function openConnection(
  address: DaemonAddress,
  options: {
    readonly timeoutMs: number;
    readonly signal: AbortSignal;
    readonly keepalive?: Keepalive | undefined;
    readonly graceMs?: number | undefined;
  },
): Promise<RpcConnection> {
  const message = `it did not open ${address.uri} in ${options.timeoutMs / 1000} s`;
  const late = new LateError(message, { wasSent: false });
  const timeout = new AbortController();
  const timer = setTimeout(() => timeout.abort(late), options.timeoutMs);
  const signal = anySignal(timeout.signal, options.signal);
  let connection: RpcConnection | undefined;
  try {
    connection = new RpcConnection(await dial(address, signal), options.graceMs);
    const call = { signal, timeoutMs: options.timeoutMs };
    await authenticate(connection, address, call);
    await connection.call(CONNECT_OPEN, { uri: address.uri }, call).catch((error: unknown) => {
      throw error instanceof RpcError ? notOpened(address, error) : error;
    });
    if (await connection.call(CONNECT_SUPPORTS_FEATURE, KEEPALIVE_FEATURE, call)) {
      connection.startHeartbeat(options.keepalive);
    }
    return connection;
  } catch (error) {
    connection?.close();
    // A call of the opening has the same limit.
    throw error instanceof LateError ? late : error;
  } finally {
    clearTimeout(timer);
  }
}

async function authenticate(
  connection: RpcConnection,
  { uri }: DaemonAddress,
  call: { readonly signal: AbortSignal; readonly timeoutMs: number },
): Promise<void> {
  const kinds = await connection.call(AUTH_LIST, undefined, call);
  if (kinds.includes(AUTH.none)) return;
  if (kinds.includes(AUTH.polkit)) {
    await connection.call(AUTH_POLKIT, undefined, call).catch((error: unknown) => {
      throw error instanceof RpcError ? denied({ uri }, error) : error;
    });
    return;
  }
  const what = kinds.includes(AUTH.sasl) ? "a name and a password (SASL)" : "an unknown authentication";
  const message = `the libvirt of ${uri} asks for ${what}, which nbdpull does not speak. Ways that work: qemu+ssh://USER@HOST/system; qemu+tls://HOST/system with a client certificate (auth_tls = "none"); on the host itself the socket, as root or in the group libvirt`;
  throw new PreconditionError("E_LIBVIRT_SASL", message, { details: { uri } });
}

/** @returns a {@link LostError} for what may pass: a daemon behind this one may be starting */
function notOpened({ uri }: DaemonAddress, cause: RpcError): Error {
  if (DENIED.includes(cause.number)) return denied({ uri }, cause);
  if (!UNKNOWN.includes(cause.number)) return new LostError(cause.message);
  const message = `the libvirt that answers can't open ${uri} (${cause.message}): name another with --connect URI`;
  return new UsageError("E_LIBVIRT_URI", message, { cause, details: { uri } });
}

function denied({ uri }: Pick<DaemonAddress, "uri">, cause: RpcError): PreconditionError {
  const message = `libvirt does not let this user open ${uri} (${cause.message}): join the group libvirt (sudo usermod -aG libvirt "$USER", then log in again), run nbdpull by sudo, or name your own libvirt with --connect qemu:///session`;
  return new PreconditionError("E_LIBVIRT_ACCESS", message, { cause, details: { uri } });
}
