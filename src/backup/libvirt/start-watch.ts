/** Tells whether a domain that is off is started meanwhile, even if it is off again by the next question. */
import type { DomainRef, Libvirt } from "./libvirt.js";
import { EVENT } from "./rpc/events.js";

/** virDomainEventType: VIR_DOMAIN_EVENT_STARTED. */
const STARTED = 2;

/**
 * Listens to libvirt's events until disposed. If the connection to libvirt is lost it hears no more: this is
 * no proof that the domain was not started.
 */
export class StartWatch implements AsyncDisposable {
  /** Aborted when the domain is started. A start that failed is no such event. */
  readonly started: AbortSignal;
  readonly #stop: () => Promise<void>;

  private constructor(started: AbortSignal, stop: () => Promise<void>) {
    this.started = started;
    this.#stop = stop;
  }

  /** @throws as every method of `Libvirt` does */
  static async of(libvirt: Libvirt, domain: DomainRef): Promise<StartWatch> {
    const controller = new AbortController();
    const { stop } = await libvirt.calls.listen(domain, [EVENT.lifecycle], (event) => {
      if (event.kind === "lifecycle" && event.event === STARTED) controller.abort();
    });
    return new StartWatch(controller.signal, stop);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stop();
  }
}
