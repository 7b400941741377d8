import type { ConnectOptions, NbdEvent } from "../../nbd/index.js";

/** What is told of a connection that reads wait for. */
export type OutageNews =
  | { readonly kind: "lost"; readonly reason: string; readonly withinMs: number | undefined }
  | { readonly kind: "back"; readonly afterMs: number };

/** How often connections to an export were lost, and how long reads waited for one. */
export interface OutageCounts {
  readonly connectionsLost: number;
  readonly secondsWaited: number;
}

/** Watches the connections to one export. */
export class Outages {
  #lost = 0;
  #waitedMs = 0;
  readonly #tell: ((news: OutageNews) => void) | undefined;

  constructor(tell: ((news: OutageNews) => void) | undefined) {
    this.#tell = tell;
  }

  /**
   * The options for a client that is watched.
   * @param signal ends its waiting for a lost connection; connections that live are not disturbed
   */
  watch<T extends Pick<ConnectOptions, "reconnect" | "onEvent">>(
    options: T,
    signal: AbortSignal | undefined,
  ): T {
    const { reconnect, onEvent } = options;
    if (reconnect === undefined) return options;
    return {
      ...options,
      reconnect: signal === undefined ? reconnect : { ...reconnect, signal },
      onEvent: (event: NbdEvent) => {
        onEvent?.(event);
        this.#note(event);
      },
    };
  }

  /** Undefined if there was nothing. */
  get counts(): OutageCounts | undefined {
    if (this.#lost === 0 && this.#waitedMs === 0) return undefined;
    return { connectionsLost: this.#lost, secondsWaited: Math.round(this.#waitedMs) / 1000 };
  }

  /** A connection that is being opened is waited for. */
  isAway(reason: string, withinMs: number | undefined): void {
    this.#tell?.({ kind: "lost", reason, withinMs });
  }

  /** It answers again. */
  waited(afterMs: number): void {
    this.#waitedMs += afterMs;
    this.#tell?.({ kind: "back", afterMs });
  }

  #note(event: NbdEvent): void {
    switch (event.type) {
      case "lost":
        this.#lost += 1;
        break;
      case "waiting":
        this.isAway(event.error.message, event.withinMs);
        break;
      case "back":
        this.waited(event.afterMs);
        break;
      case "opened":
      case "not-opened":
      case "reconnect-failed":
        break;
      default:
        event satisfies never;
    }
  }
}
