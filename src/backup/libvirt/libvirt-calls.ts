import { setTimeout as sleep } from "node:timers/promises";
import { hasCode } from "../base/errors.js";
import { resolveConnectionUri, runtimeFolder } from "./connection-uri.js";
import { type Hypervisor, parseConnectionUri } from "./hypervisor.js";
import { type Asked, failure, mayAnswerLater } from "./libvirt-errors.js";
import type { CallOptions } from "./rpc/connection.js";
import { Download } from "./rpc/download.js";
import { type DomainEvent, EVENT } from "./rpc/events.js";
import type { Procedure } from "./rpc/procedure.js";
import * as remote from "./rpc/procedures.js";
import { RpcSession, unlessAborted } from "./rpc/session.js";
import type { WireDomain } from "./rpc/wire-objects.js";

export interface LibvirtOptions {
  /**
   * The connection URI, or an alias from libvirt.conf. Default: `LIBVIRT_DEFAULT_URI`, `uri_default` of
   * libvirt.conf, or the system's libvirt for root and the user's own for others.
   */
  readonly connect?: string | undefined;
  /** Ends the waiting for an answer and refuses further calls. Clean-up needs another: see `withSignal`. */
  readonly signal?: AbortSignal | undefined;
  /** How long to retry while libvirt doesn't answer, since it may be starting; by default not at all. */
  readonly patienceMs?: number | undefined;
  /** Limit for one answer; default 90 s, since libvirt itself waits 30 s for a busy domain. */
  readonly timeoutMs?: number | undefined;
}

/**
 * A domain by its name, UUID or the number of its run (in this order), or a known domain. A known domain is
 * addressed by its UUID, so that it can be renamed, and messages give its name.
 */
export type DomainRef = string | { readonly uuid: string; readonly name: string };

/** A number as libvirt reads that of a run. */
const NUMBER = /^\d{1,9}$/;
/** As libvirt reads one, without its hyphens and blanks. */
const UUID = /^[0-9a-f]{32}$/i;

/** Longer than a restart of libvirtd takes on a host with many domains. */
export const PATIENCE_MS = 60_000;
/** Time between two attempts while libvirt doesn't answer. */
const RETRY_MS = 500;
const TIMEOUT_MS = 90_000;
/** For what libvirt also does by itself when the connection ends. */
const FAREWELL_MS = 5000;

type Sending = Pick<CallOptions, "again" | "sendBefore" | "onSent">;

/** Calls to one libvirt: domains found by any name, patience, and typed errors. */
export class LibvirtCalls {
  readonly #options: LibvirtOptions;
  readonly #session: RpcSession;

  constructor(options: LibvirtOptions, session = newSession(options)) {
    this.#options = options;
    this.#session = session;
  }

  /** The same connection with other options. */
  with(options: LibvirtOptions): LibvirtCalls {
    return new LibvirtCalls({ ...this.#options, ...options }, this.#session);
  }

  /** How long a libvirt that doesn't answer is asked again; undefined: nobody said. */
  get patienceMs(): number | undefined {
    return this.#options.patienceMs;
  }

  /** Ends the connection, for all that share it. */
  async close(): Promise<void> {
    await this.#session.close();
  }

  /** The URI of the connection, also if none was named. */
  async uri(): Promise<string> {
    return await resolveConnectionUri(this.#options.connect);
  }

  /** Where libvirt runs. */
  async hypervisor(): Promise<Hypervisor> {
    return parseConnectionUri(await this.uri(), { runtimeFolder: runtimeFolder() }).hypervisor;
  }

  /**
   * Registers for an event of a domain (`EVENT`). Resolves once libvirt sends them.
   * @returns the signal that fires when the connection is lost, and the events with it
   */
  async listen(
    domain: DomainRef,
    events: readonly number[],
    listener: (event: DomainEvent) => void,
  ): Promise<{ readonly lost: AbortSignal; readonly stop: () => Promise<void> }> {
    const found = await this.find(domain);
    const register = remote.CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY;
    const forget = remote.CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY;
    const { signal, timeoutMs = TIMEOUT_MS } = this.#options;
    return await this.#patiently({ procedure: register, about: nameOf(domain) }, async () => {
      const connection = await this.#session.connection(signal);
      const silence = connection.listen((event) => {
        if (event.domain.uuid === found.uuid && events.includes(EVENT[event.kind])) listener(event);
      });
      // Without the signal: what libvirt has registered can only be taken back once it has said as what.
      const registering = events.map((event) =>
        connection.call(register, { event, domain: found }, { timeoutMs }),
      );
      const stop = async (): Promise<void> => {
        silence();
        // A daemon that is gone has forgotten them.
        await Promise.allSettled(
          registering.map(async (callback) =>
            connection.call(forget, await callback, { timeoutMs: FAREWELL_MS }),
          ),
        );
      };
      try {
        await unlessAborted(Promise.all(registering), signal);
      } catch (error) {
        void stop();
        throw error;
      }
      return { lost: connection.lost, stop };
    });
  }

  /** Asks about a domain. */
  async ask<Args extends object, Answer>(
    procedure: Procedure<Args & { readonly domain: WireDomain }, Answer>,
    domain: DomainRef,
    args: Args,
    options: Sending = {},
  ): Promise<Answer> {
    const found = await this.find(domain);
    return await this.call(procedure, { ...args, domain: found }, nameOf(domain), options);
  }

  /** Asks for something that comes as a stream, of at most `most` bytes. */
  async download<Args extends object, Answer>(
    procedure: Procedure<Args & { readonly domain: WireDomain }, Answer>,
    domain: DomainRef,
    args: Args,
    most: number,
  ): Promise<{ readonly answer: Answer; readonly bytes: Buffer }> {
    const { signal, timeoutMs = TIMEOUT_MS } = this.#options;
    const found = await this.find(domain);
    return await this.#patiently({ procedure, about: nameOf(domain) }, async () => {
      const download = new Download(most);
      const whole = { ...args, domain: found };
      const answer = await this.#session.call(procedure, whole, { signal, timeoutMs, download });
      return { answer, bytes: await download.bytes };
    });
  }

  /** A domain for a call. A known one needs no question: libvirt finds it by its UUID. */
  async find(domain: DomainRef): Promise<WireDomain> {
    return typeof domain === "string" ? await this.lookUp(domain) : { ...domain, id: -1 };
  }

  /** The domain as libvirt knows it now. A name takes precedence over a UUID or a number that looks alike. */
  async lookUp(domain: DomainRef): Promise<WireDomain> {
    if (typeof domain !== "string") {
      return await this.call(remote.DOMAIN_LOOKUP_BY_UUID, domain.uuid, domain.name);
    }
    try {
      return await this.call(remote.DOMAIN_LOOKUP_BY_NAME, domain, domain);
    } catch (error) {
      if (!hasCode(error, "E_NO_SUCH_DOMAIN")) throw error;
      const digits = domain.replaceAll(/[-\s]/g, "");
      if (UUID.test(digits)) return await this.call(remote.DOMAIN_LOOKUP_BY_UUID, digits, domain);
      if (NUMBER.test(domain)) return await this.call(remote.DOMAIN_LOOKUP_BY_ID, Number(domain), domain);
      throw error;
    }
  }

  /** Asks about no domain, or about one that `args` contain; messages name `about`. */
  call<Args, Answer>(
    procedure: Procedure<Args, Answer>,
    args: Args,
    about: string,
    sending: Sending = {},
  ): Promise<Answer> {
    const { signal, timeoutMs = TIMEOUT_MS } = this.#options;
    return this.#patiently({ procedure, about }, () =>
      this.#session.call(procedure, args, { signal, timeoutMs, ...sending }),
    );
  }

  /** Tries again while libvirt doesn't answer, and says by typed errors what was wrong. */
  async #patiently<T>(asked: Omit<Asked, "uri">, work: () => Promise<T>): Promise<T> {
    const { signal, patienceMs = 0 } = this.#options;
    const deadline = performance.now() + patienceMs;
    for (;;) {
      signal?.throwIfAborted();
      try {
        return await work();
      } catch (error) {
        signal?.throwIfAborted();
        const failed = failure(error, { ...asked, uri: await this.uri() });
        if (!mayAnswerLater(failed) || performance.now() >= deadline) throw failed;
      }
      await sleep(RETRY_MS, undefined, signal && { signal }).catch(() => signal?.throwIfAborted());
    }
  }
}

function newSession({ connect, timeoutMs = TIMEOUT_MS }: LibvirtOptions): RpcSession {
  const address = async () =>
    parseConnectionUri(await resolveConnectionUri(connect), { runtimeFolder: runtimeFolder() }).daemon;
  return new RpcSession(address, { timeoutMs });
}

export function nameOf(domain: DomainRef): string {
  return typeof domain === "string" ? domain : domain.name;
}
