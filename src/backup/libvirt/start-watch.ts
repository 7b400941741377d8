/** Tells whether a domain that is off is started meanwhile, even if it is off again by the next question. */
import type { DomainRef, Libvirt } from "./libvirt.js";
import { EVENT } from "./rpc/events.js";

/** virDomainEventType: VIR_DOMAIN_EVENT_STARTED. */
const STARTED = 2;

/** Listens to libvirt's events until disposed. */
export class StartWatch implements AsyncDisposable {
  /** Aborted when the domain is started. A start that failed is no such event. */
  readonly started: AbortSignal;
  readonly #lost: AbortSignal;
  readonly #stop: () => Promise<void>;

  private constructor(started: AbortSignal, lost: AbortSignal, stop: () => Promise<void>) {
    this.started = started;
    this.#lost = lost;
    this.#stop = stop;
  }

  /** Whether the connection to libvirt was lost, so that a start may have gone unheard. */
  get isDeaf(): boolean {
    return this.#lost.aborted;
  }

  /** @throws as every method of `Libvirt` does */
  static async of(libvirt: Libvirt, domain: DomainRef): Promise<StartWatch> {
    const controller = new AbortController();
    const { lost, stop } = await libvirt.calls.listen(domain, [EVENT.lifecycle], (event) => {
      if (event.kind === "lifecycle" && event.event === STARTED) controller.abort();
    });
    return new StartWatch(controller.signal, lost, stop);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stop();
  }
}
