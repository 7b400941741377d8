/**
 * libvirt's protocol as its daemons speak it. Read this file first: one connection, its calls and its events.
 * `packets.ts` divides its bytes, `download.ts` collects a stream of them, `xdr.ts` and `typed-params.ts` are
 * the values in them, `procedures.ts` has what can be called, `events.ts` what libvirt tells by itself, and
 * `errors.ts` what becomes of a call otherwise. `daemon-address.ts` reads a URI, `dial.ts` connects,
 * `open.ts` authenticates, and `session.ts` connects again after a loss. Nothing here knows what a backup is.
 */

import type { Duplex } from "node:stream";
import { messageOf } from "../../base/errors.js";
import { CallSlots } from "./call-slots.js";
import type { Download } from "./download.js";
import { decodeError, LateError, LostError, UnsentError } from "./errors.js";
import { type DomainEvent, decodeEvent } from "./events.js";
import { encodePacket, type Packet, PacketSplitter, PROGRAM, STATUS, TYPE } from "./packets.js";
import type { Procedure } from "./procedure.js";
import { UnreadableError, XdrReader, XdrWriter } from "./xdr.js";

/** A way to a daemon: bytes in both directions. */
export interface Transport {
  readonly stream: Duplex;
  /** Whether the process may end although the transport is open. */
  readonly keepAwake: (awake: boolean) => void;
  /** Why the other end is gone, if the transport knows more than the stream's error says. */
  readonly reason: () => Promise<string | undefined>;
  readonly close: () => void;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
  /** Limit for the answer, from the call on, also where it has to wait for others before it is sent. */
  readonly timeoutMs: number;
  /** Takes the stream that follows the answer. Only for a procedure that is not repeatable. */
  readonly download?: Download | undefined;
  /**
   * False: a session makes the call once, also if it was not sent: who makes it has to look at something
   * before it is made again.
   */
  readonly again?: boolean | undefined;
  /** A moment of `performance.now()`: later it is not sent any more, but fails with a {@link LateError}. */
  readonly sendBefore?: number | undefined;
  /** Called once it is sent. From then on it may be done, whatever becomes of its answer. */
  readonly onSent?: (() => void) | undefined;
}

/**
 * libvirt answers five calls of one client at a time, and reads nothing more from it meanwhile, not even that
 * it is alive (`max_client_requests` in libvirtd.conf).
 */
const MOST_CALLS = 4;
/** As virsh does: a daemon that is silent for 35 s is taken for dead. */
const KEEPALIVE = { everyMs: 5000, unanswered: 6 };
export type Keepalive = typeof KEEPALIVE;
/** A daemon that is well has answered by then what nobody waits for any longer. */
const GRACE_MS = 5000;

const PING = 1;
const PONG = 2;
/** Bytes that wait for a daemon that reads nothing; beyond them, its pings get no answer. */
const MOST_WAITING = 64 * 1024;

interface Abandoned {
  readonly procedure: Procedure<never, unknown>;
  /** As `performance.now()` counts. */
  readonly since: number;
}

interface Call {
  readonly procedure: Procedure<never, unknown>;
  readonly resolve: (answer: unknown) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * One connection to a libvirt daemon. Calls are answered in any order, and several can be under way. When the
 * connection ends, for whatever reason, every call is settled.
 *
 * @throws from `call`: {@link RpcError}, {@link LostError}, {@link LateError}, {@link UnreadableError} or the
 * signal's reason
 */
export class RpcConnection {
  readonly #transport: Transport;
  readonly #splitter = new PacketSplitter();
  readonly #calls = new Map<number, Call>();
  /** By their serials, the calls whose answers nobody waits for any longer. */
  readonly #abandoned = new Map<number, Abandoned>();
  /** Streams that have not ended, by the serials of their calls. */
  readonly #downloads = new Map<number, Download>();
  readonly #slots = new CallSlots(MOST_CALLS);
  readonly #lost = new AbortController();
  readonly #listeners = new Set<(event: DomainEvent) => void>();
  #serial = 0;
  #heartbeat: NodeJS.Timeout | undefined;
  #silence = 0;
  readonly #graceMs: number;
  #grace: NodeJS.Timeout | undefined;

  /** @param graceMs how long a daemon may owe all answers that it can, if nobody waits for any of them */
  constructor(transport: Transport, graceMs = GRACE_MS) {
    this.#transport = transport;
    this.#graceMs = graceMs;
    const { stream } = transport;
    stream.on("data", (bytes: Buffer) => this.#received(bytes));
    stream.on("error", (error) => void this.#ended(messageOf(error)));
    stream.on("close", () => void this.#ended("it was closed by libvirt"));
    stream.on("end", () => void this.#ended("it was closed by libvirt"));
    transport.keepAwake(false);
  }

  /** Fires when the connection has ended; its reason is a {@link LostError} or {@link UnreadableError}. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** @returns a function that ends the listening */
  listen(listener: (event: DomainEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** From now on, a silent daemon is asked whether it lives, and taken for dead if it doesn't answer. */
  startHeartbeat({ everyMs, unanswered }: Keepalive = KEEPALIVE): void {
    clearInterval(this.#heartbeat);
    this.#heartbeat = setInterval(() => {
      this.#silence += 1;
      if (this.#silence <= unanswered) this.#keepalive(PING);
      else this.#lose(new LostError(`libvirt was silent for ${(everyMs * this.#silence) / 1000} s`));
    }, everyMs).unref();
  }

  /**
   * Calls a procedure, once the daemon has answered all but three of the calls before. If it goes on owing
   * the answers to four that nobody waits for any longer, it may never read this one: the connection is given
   * up then.
   */
  async call<Args, Answer>(
    procedure: Procedure<Args, Answer>,
    args: Args,
    { signal, timeoutMs, download, sendBefore, onSent }: CallOptions,
  ): Promise<Answer> {
    signal?.throwIfAborted();
    this.#refuseIfLost();
    const limit = new AbortController();
    const abort = (): void => limit.abort(signal?.reason);
    signal?.addEventListener("abort", abort, { once: true });
    let wasSent = false;
    const late = (): void => {
      const others = this.#calls.size + this.#abandoned.size;
      const message = wasSent
        ? `no answer in ${timeoutMs / 1000} s`
        : `${others} calls before it had no answer after ${timeoutMs / 1000} s`;
      limit.abort(new LateError(message, { wasSent }));
    };
    const timer = setTimeout(late, timeoutMs);
    try {
      const slot = this.#slots.take(limit.signal);
      this.#leaveIfStuck();
      await slot;
      if (sendBefore !== undefined && performance.now() > sendBefore) {
        this.#slots.give();
        throw new LateError("what was asked before took too long", { wasSent: false });
      }
      wasSent = true;
      const answer = await this.#answerTo(procedure, args, { limit: limit.signal, download, onSent });
      await download?.bytes;
      return answer;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      if (this.#calls.size === 0) this.#transport.keepAwake(false);
    }
  }

  /** Sends a call that has its slot. */
  #answerTo<Args, Answer>(
    procedure: Procedure<Args, Answer>,
    args: Args,
    { limit, download, onSent }: { readonly limit: AbortSignal } & Pick<CallOptions, "download" | "onSent">,
  ): Promise<Answer> {
    this.#refuseIfLost();
    const out = new XdrWriter();
    try {
      limit.throwIfAborted();
      procedure.encode(out, args);
    } catch (error) {
      this.#slots.give();
      throw error;
    }
    this.#serial += 1;
    const serial = this.#serial;
    const answer = new Promise<Answer>((resolve, reject) => {
      this.#calls.set(serial, { procedure, resolve: resolve as Call["resolve"], reject });
    });
    if (download) this.#downloads.set(serial, download);
    this.#transport.keepAwake(true);
    const { number, program = PROGRAM.remote } = procedure;
    this.#send({ ...HEADER, program, procedure: number, serial, payload: out.finish() });
    onSent?.();
    const giveUp = (): void => {
      download?.fail(limit.reason);
      const call = this.#calls.get(serial);
      if (!call) return;
      this.#calls.delete(serial);
      this.#abandoned.set(serial, { procedure, since: performance.now() });
      call.reject(limit.reason);
      this.#leaveIfStuck();
    };
    limit.addEventListener("abort", giveUp, { once: true });
    return answer;
  }

  #refuseIfLost(): void {
    const { aborted, reason } = this.#lost.signal;
    if (aborted) throw UnsentError.of(reason);
  }

  /**
   * Who waits for a slot may wait in vain, for answers that nobody else waits for. But they have their time
   * first: those of a daemon that is well come soon after an interruption, and another connection costs a
   * login.
   */
  #leaveIfStuck(): void {
    clearTimeout(this.#grace);
    if (this.#abandoned.size < MOST_CALLS || !this.#slots.isWaitedFor) return;
    const youngest = Math.max(...Array.from(this.#abandoned.values(), ({ since }) => since));
    const leftMs = youngest + this.#graceMs - performance.now();
    if (leftMs > 0) {
      // Who waits has a limit, and its timer keeps the process alive until then.
      this.#grace = setTimeout(() => this.#leaveIfStuck(), leftMs).unref();
      return;
    }
    this.#lose(new LostError(`libvirt owes the answers to ${this.#abandoned.size} calls`));
  }

  close(): void {
    this.#lose(new LostError("this end has closed it"));
  }

  #received(bytes: Buffer): void {
    this.#silence = 0;
    try {
      for (const packet of this.#splitter.push(bytes)) this.#take(packet);
    } catch (error) {
      // After this, nothing that comes can be understood.
      this.#lose(error);
    }
  }

  #take(packet: Packet): void {
    if (packet.program === PROGRAM.keepalive) {
      const isReading = this.#transport.stream.writableLength < MOST_WAITING;
      if (packet.procedure === PING && isReading) this.#keepalive(PONG);
    } else if (packet.type === TYPE.message) this.#event(packet);
    else if (packet.type === TYPE.reply) this.#reply(packet);
    else if (packet.type === TYPE.stream) this.#stream(packet);
    else throw new UnreadableError(`a packet of type ${packet.type}`);
  }

  #event({ program, procedure, payload }: Packet): void {
    if (program !== PROGRAM.remote) return;
    const message = new XdrReader(payload);
    const event = decodeEvent(procedure, message);
    if (event === undefined) return;
    message.end();
    for (const listener of this.#listeners) listener(event);
  }

  #reply({ program, procedure, serial, status, payload }: Packet): void {
    const call = this.#calls.get(serial);
    const expected = call?.procedure ?? this.#abandoned.get(serial)?.procedure;
    if (expected === undefined) throw new UnreadableError(`an answer to call ${serial}, which nobody made`);
    if (program !== (expected.program ?? PROGRAM.remote) || procedure !== expected.number) {
      throw new UnreadableError(`an answer of procedure ${procedure} to ${expected.name}`);
    }
    if (status !== STATUS.ok && status !== STATUS.error) {
      throw new UnreadableError(`an answer of status ${status}`);
    }
    const reader = new XdrReader(payload);
    const error = status === STATUS.error ? decodeError(reader) : undefined;
    const answer = error ?? expected.decode(reader);
    reader.end();
    this.#calls.delete(serial);
    this.#abandoned.delete(serial);
    this.#slots.give();
    // No stream follows an error.
    if (error) this.#downloads.delete(serial);
    if (error) call?.reject(error);
    else call?.resolve(answer);
  }

  #stream(packet: Packet): void {
    const { program, procedure, serial } = packet;
    const download = this.#downloads.get(serial);
    if (!download) throw new UnreadableError(`a stream of call ${serial}, which asked for none`);
    const state = download.take(packet);
    if (state === "more") return;
    if (state === "ended") this.#downloads.delete(serial);
    else {
      const end = { program, procedure, serial, status: STATUS.ok, payload: Buffer.alloc(0) };
      this.#send({ ...end, type: TYPE.stream });
    }
  }

  #keepalive(procedure: number): void {
    const payload = Buffer.alloc(0);
    this.#send({ ...HEADER, program: PROGRAM.keepalive, type: TYPE.message, procedure, serial: 0, payload });
  }

  #send(packet: Packet): void {
    if (!this.#lost.signal.aborted) this.#transport.stream.write(encodePacket(packet));
  }

  async #ended(what: string): Promise<void> {
    if (this.#lost.signal.aborted) return;
    const reason = await this.#transport.reason();
    this.#lose(new LostError(reason ?? what));
  }

  #lose(reason: unknown): void {
    if (this.#lost.signal.aborted) return;
    this.#lost.abort(reason);
    clearInterval(this.#heartbeat);
    clearTimeout(this.#grace);
    for (const { reject } of this.#calls.values()) reject(reason);
    for (const download of this.#downloads.values()) download.fail(reason);
    this.#calls.clear();
    this.#abandoned.clear();
    this.#slots.refuse(reason);
    this.#transport.close();
  }
}

const HEADER = { program: PROGRAM.remote, type: TYPE.call, status: STATUS.ok } as const;
