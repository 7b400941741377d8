/** Connects to a server and runs the handshake of negotiate.ts with it. */

import { aborted, onAbort } from "./abort.js";
import {
  ConnectionError,
  MetaContextError,
  type NbdError,
  OptionError,
  ProtocolError,
  TlsError,
} from "./errors.js";
import { FAREWELL, type Negotiation } from "./negotiate.js";
import { countedTimeout } from "./patience/counted-timeout.js";
import { describe, type Receiver, Transport } from "./socket.js";
import type { Secure } from "./tls.js";
import type { Endpoint } from "./uri.js";
import { concatBytes } from "./wire/bytes.js";

interface DialSettings {
  readonly endpoint: Endpoint;
  /** Undefined if TLS isn't used. */
  readonly secure: Secure | undefined;
  /** Time limit for connecting and negotiating together. */
  readonly connectTimeoutMs: number;
  readonly signal: AbortSignal | undefined;
  /** Aborts connecting, but no handshake that has begun. */
  readonly stop?: AbortSignal | undefined;
}

interface Dialled<T> {
  readonly transport: Transport;
  readonly result: T;
  /** Bytes that the server sent after its last reply; for the next receiver. */
  readonly rest: Uint8Array;
}

/** @throws {NbdError} after closing the connection */
export async function dial<T>(settings: DialSettings, negotiation: Negotiation<T>): Promise<Dialled<T>> {
  const { endpoint, secure, connectTimeoutMs, signal, stop } = settings;
  if (signal?.aborted) throw aborted(signal);
  if (stop?.aborted) throw aborted(stop);
  const transport = open(endpoint, secure !== undefined);
  const inbox = new Inbox();
  transport.receiver = inbox;
  const endTimeout = countedTimeout(connectTimeoutMs, () => {
    const message = `${transport.peer} took longer than ${connectTimeoutMs} ms for ${inbox.awaiting}`;
    transport.destroy(new ConnectionError("NBD_CONNECT_TIMEOUT", `${message}${inbox.advice}`));
  });
  const forget = signal && onAbort(signal, () => transport.destroy(aborted(signal)));
  const forgetStop = stop && onAbort(stop, () => transport.destroy(aborted(stop)));
  try {
    await transport.connected;
    forgetStop?.();
    const result = await converse(transport, inbox, negotiation, secure);
    return { transport, result, rest: inbox.takeRest() };
  } catch (error) {
    if (isRefusal(error)) await transport.end(FAREWELL);
    transport.destroy(new ConnectionError("NBD_CLOSED", "negotiation failed", { cause: error }));
    throw inbox.isTlsUnproven && isHangUp(error) ? (secure?.explain(error) ?? error) : error;
  } finally {
    endTimeout();
    forget?.();
    forgetStop?.();
  }
}

/**
 * Whether the negotiation ended with no option unanswered; only then may the client say goodbye. After an
 * abort or a time-out, an option or a handshake is still pending, and the client can only hang up.
 */
function isRefusal(error: unknown): boolean {
  if (error instanceof TlsError) return error.cause instanceof OptionError;
  return error instanceof OptionError || error instanceof MetaContextError;
}

function isHangUp(error: unknown): error is ConnectionError {
  if (!(error instanceof ConnectionError)) return false;
  return error.code === "NBD_CLOSED_BY_SERVER" || error.code === "NBD_CONNECTION_LOST";
}

function open(endpoint: Endpoint, upgradable: boolean): Transport {
  try {
    return new Transport(endpoint, upgradable);
  } catch (cause) {
    // Node rejects some addresses synchronously, such as invalid ports and paths that are too long.
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ConnectionError("NBD_CONNECT_FAILED", `no connection to ${describe(endpoint)}: ${reason}`, {
      cause,
    });
  }
}

const NOTHING = new Uint8Array(0);

async function converse<T>(
  transport: Transport,
  inbox: Inbox,
  negotiation: Negotiation<T>,
  secure: DialSettings["secure"],
): Promise<T> {
  let turn = negotiation.next(NOTHING);
  while (!turn.done) {
    let received: Uint8Array = NOTHING;
    const step = turn.value;
    switch (step.kind) {
      case "send":
        transport.write(step.bytes);
        break;
      case "receive":
        received = await inbox.receive(step.length, step.awaiting);
        break;
      case "startTls":
        await startTls(transport, inbox, secure);
        break;
      default:
        step satisfies never;
    }
    turn = negotiation.next(received);
  }
  return turn.value;
}

async function startTls(transport: Transport, inbox: Inbox, secure: DialSettings["secure"]): Promise<void> {
  if (secure === undefined) throw new TlsError("NBD_TLS_CONFIG", "TLS was started without being set up");
  // Bytes that came before the TLS handshake may be forged; accepting them would treat them as authentic.
  if (inbox.takeRest().length > 0) {
    throw new TlsError("NBD_TLS_INJECTION", "plain text came after the server's consent to TLS");
  }
  inbox.awaiting = "the TLS handshake";
  inbox.isTlsUnproven = true;
  await transport.upgrade(secure.handshake);
}

/** Most bytes that a server may send ahead of what the negotiation has asked for. */
const MAX_AHEAD = 256 * 1024;

/** Collects bytes until the wanted number has arrived. */
class Inbox implements Receiver {
  /** What is awaited, for messages. */
  awaiting = "a connection";
  /** Whether TLS has started and no byte has arrived over it. */
  isTlsUnproven = false;
  /** Bytes arrive here first, since the queue moves while the buffer is lent. */
  readonly #landing = new Uint8Array(4096);
  #queued: Uint8Array = NOTHING;
  #wanted = 0;
  #resolve: ((bytes: Uint8Array) => void) | undefined;
  #reject: ((error: NbdError) => void) | undefined;
  #failure: NbdError | undefined;

  /** Advice about a server that doesn't answer. */
  get advice(): string {
    return this.awaiting === "the greeting"
      ? "; it accepted the connection, so it may be busy with another client (qemu-nbd serves one at a time unless started with --shared)"
      : "";
  }

  target(): Uint8Array {
    return this.#landing;
  }

  received(count: number): void {
    this.isTlsUnproven = false;
    this.#queued = concatBytes(this.#queued, this.#landing.subarray(0, count));
    if (this.#queued.length > MAX_AHEAD) {
      throw new ProtocolError("the server sent much more than it was asked for during negotiation");
    }
    this.#deliver();
  }

  closed(error: NbdError): void {
    this.#failure =
      error.code === "NBD_CLOSED_BY_SERVER"
        ? new ConnectionError(error.code, `${error.message} instead of sending ${this.awaiting}`)
        : error;
    this.#reject?.(this.#failure);
  }

  /** The next `length` bytes; at most one call at a time. */
  receive(length: number, awaiting: string): Promise<Uint8Array> {
    this.awaiting = awaiting;
    return new Promise((resolve, reject) => {
      this.#wanted = length;
      this.#resolve = resolve;
      this.#reject = reject;
      this.#deliver();
      if (this.#failure !== undefined) reject(this.#failure);
    });
  }

  takeRest(): Uint8Array {
    const rest = this.#queued;
    this.#queued = NOTHING;
    return rest;
  }

  #deliver(): void {
    if (this.#resolve === undefined || this.#queued.length < this.#wanted) return;
    const resolve = this.#resolve;
    this.#resolve = undefined;
    this.#reject = undefined;
    resolve(this.#queued.slice(0, this.#wanted));
    this.#queued = this.#queued.slice(this.#wanted);
  }
}
