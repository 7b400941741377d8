import { addAbortListener } from "node:events";
import { hasCode, messageOf } from "../base/errors.js";
import { type DomainRun, type FillProgress, isOff } from "../libvirt/domain-run.js";
import type { WholeImages } from "./whole-images.js";

export type FillEvent =
  | ({ readonly type: "filling"; readonly disk: string } & FillProgress)
  /** The disk's image is based on nothing any more. */
  | { readonly type: "filled"; readonly disk: string }
  /** Nothing is filled until somebody starts it. */
  | { readonly type: "off"; readonly hasCrashed: boolean }
  /** After it was off. */
  | { readonly type: "runs" }
  /** A disk failed, and QEMU has stopped the guest; it will be let go on by and by. */
  | { readonly type: "stopped" }
  /** Something went wrong that is tried again; each message once. */
  | { readonly type: "trouble"; readonly message: string };

interface FillOptions {
  readonly run: DomainRun;
  readonly name: string;
  /** The disks, and the path of the image of each. */
  readonly disks: readonly { readonly disk: string; readonly image: string }[];
  /** Images into which QEMU copies what the guest has written; a disk that gets none is filled by QEMU. */
  readonly wholes: Pick<WholeImages, "of" | "watch" | "prepareCopy" | "maySwitch" | "giveUp">;
  /** Called when a disk needs nobody any more. */
  readonly onAlone: (disk: string) => Promise<void>;
  /** Where the exports are served that the images are based on. */
  readonly socket: string;
  /** Bytes per second; undefined: no limit. */
  readonly rate: number | undefined;
  readonly signal: AbortSignal | undefined;
  readonly onEvent: (event: FillEvent) => void;
}

/** Time between two looks, unless libvirt tells of something. */
const LOOK_MS = 1000;
/**
 * How long to wait before the next attempt, by how many have failed. The first one after a loss always fails.
 */
const WAITS_MS = [0, 0, 1000, 5000, 20_000, 60_000];
/** After so many, QEMU fills the disk's own image instead. */
const MOST_MERGES = 2;
/** A guest that runs for this long after it was let go on is all right. */
const STEADY_MS = 10_000;

/** Says when something may be tried again that has failed before. */
class Attempts {
  #failed = 0;
  #next = 0;

  get failed(): number {
    return this.#failed;
  }

  isDue(now: number): boolean {
    return now >= this.#next;
  }

  note(now: number): void {
    this.#next = now + (WAITS_MS[Math.min(this.#failed, WAITS_MS.length - 1)] ?? 0);
    this.#failed += 1;
  }

  forget(): void {
    this.#failed = 0;
    this.#next = 0;
  }
}

/**
 * Has QEMU fill the disks of a domain, one at a time, until each is based on nothing. While it is off this
 * waits for its start. When QEMU has stopped it because a disk failed, this lets it go on. Neither damage nor
 * a libvirt that is away ends this, because the guest needs who calls this: only success does, and the
 * signal.
 *
 * @throws {PreconditionError} `E_NO_SUCH_DOMAIN`: libvirt knows the domain no longer
 * @throws the signal's reason
 */
export async function fillDisks(options: FillOptions): Promise<void> {
  const { run, signal } = options;
  const alarm = new Alarm(signal);
  let watch: AsyncDisposable | undefined;
  const filling = new Filling(options);
  options.wholes.watch(() => alarm.ring());
  try {
    for (;;) {
      signal?.throwIfAborted();
      try {
        watch ??= await run.watch(() => alarm.ring());
        if (await filling.look()) return;
      } catch (error) {
        signal?.throwIfAborted();
        if (hasCode(error, "E_NO_SUCH_DOMAIN")) throw error;
        // The connection, and the events with it, may be lost.
        await endWatch(watch);
        watch = undefined;
        filling.trouble(messageOf(error));
      }
      await alarm.wait(LOOK_MS);
    }
  } finally {
    alarm.silence();
    await endWatch(watch);
  }
}

async function endWatch(watch: AsyncDisposable | undefined): Promise<void> {
  try {
    await watch?.[Symbol.asyncDispose]();
  } catch {
    // Whoever can't be told has forgotten it.
  }
}

class Filling {
  readonly #options: FillOptions;
  /** The disks that are not filled yet. */
  readonly #left: Map<string, Attempts>;
  readonly #images: ReadonlyMap<string, string>;
  /** How often each disk was to be copied into its whole image. */
  readonly #merges = new Map<string, number>();
  readonly #resumes = new Attempts();
  readonly #told = new Set<string>();
  #letGoOnAt = 0;
  #saidOff = false;
  #saidStopped = false;

  constructor(options: FillOptions) {
    this.#options = options;
    this.#left = new Map(options.disks.map(({ disk }) => [disk, new Attempts()]));
    this.#images = new Map(options.disks.map(({ disk, image }) => [disk, image]));
  }

  /** @returns whether all disks are filled */
  async look(): Promise<boolean> {
    const { run, onEvent } = this.#options;
    const state = await run.runState();
    if (state === "off") {
      if (!this.#saidOff) onEvent({ type: "off", hasCrashed: await run.hasCrashed() });
      this.#saidOff = true;
      return false;
    }
    if (this.#saidOff) onEvent({ type: "runs" });
    this.#saidOff = false;
    if (state === "stopped") await this.#letGoOn();
    else if (performance.now() - this.#letGoOnAt > STEADY_MS) {
      this.#resumes.forget();
      this.#saidStopped = false;
    }
    const unsettled = new Set<string>();
    for (const disk of [...this.#left.keys()]) {
      const image = this.#images.get(disk) ?? "";
      const isAlone = await run.standsAlone(disk, { image, socket: this.#options.socket });
      if (isAlone === undefined) return false;
      if (!isAlone) {
        if (await this.#isBusy(disk)) return false;
        continue;
      }
      if (await this.#settle(disk)) onEvent({ type: "filled", disk });
      else unsettled.add(disk);
    }
    // One that fails at a damaged place must not keep the others waiting.
    const now = performance.now();
    const { wholes } = this.#options;
    const due = [...this.#left].filter(
      ([disk, attempts]) =>
        !unsettled.has(disk) && attempts.isDue(now) && wholes.of(disk)?.state !== "making",
    );
    const [first] = due.sort(([, one], [, other]) => one.failed - other.failed);
    if (first) {
      const [disk, attempts] = first;
      attempts.note(now);
      await this.#fill(disk);
    }
    return this.#left.size === 0;
  }

  /**
   * @returns whether nobody is needed for the disk any more; what keeps it must not keep the others waiting
   */
  async #settle(disk: string): Promise<boolean> {
    try {
      await this.#options.onAlone(disk);
      this.#left.delete(disk);
      return true;
    } catch (error) {
      if (hasCode(error, "E_NO_SUCH_DOMAIN")) throw error;
      this.trouble(messageOf(error));
      return false;
    }
  }

  trouble(message: string): void {
    if (this.#told.has(message)) return;
    this.#told.add(message);
    this.#options.onEvent({ type: "trouble", message });
  }

  /** Whether the disk is being filled, or copied into its whole image. */
  async #isBusy(disk: string): Promise<boolean> {
    const { run, wholes } = this.#options;
    const progress = await run.filling(disk);
    const whole = wholes.of(disk);
    if (progress && whole?.state === "made") {
      const merging = await run.merging(disk);
      if (merging?.isReady === true && merging.image === whole.path) {
        if ((await this.#isPlain(disk)) && (await wholes.maySwitch(disk))) await run.switchOver(disk);
        else await run.endCopy(disk);
      }
      // How far it is was told while the image was made.
      if (merging) return true;
    }
    if (progress && progress.total > 0) this.#options.onEvent({ type: "filling", disk, ...progress });
    return progress !== undefined;
  }

  /** Nobody has made a snapshot of it, whose image would be all that is copied. */
  async #isPlain(disk: string): Promise<boolean> {
    const { run, socket } = this.#options;
    return await run.isOnlyOn(disk, { image: this.#images.get(disk) ?? "", socket });
  }

  async #fill(disk: string): Promise<void> {
    const { run, rate, wholes } = this.#options;
    try {
      const merges = this.#merges.get(disk) ?? 0;
      let whole = wholes.of(disk);
      if (whole?.state === "made") {
        if (merges < MOST_MERGES && (await this.#isPlain(disk))) {
          await wholes.prepareCopy(disk);
          whole = wholes.of(disk);
        } else if ((await run.runState()) === "off") {
          // Then it looks as if it were on something else.
          return;
        } else {
          await wholes.giveUp(disk);
          whole = undefined;
        }
      }
      if (whole?.state === "making") return;
      if (whole?.state === "made") {
        this.#merges.set(disk, merges + 1);
        await run.mergeInto(disk, whole.path, rate);
      } else await run.fill(disk, rate);
    } catch (error) {
      if (!isOff(error)) this.trouble(`${disk} can't be filled now: ${messageOf(error)}`);
    }
  }

  async #letGoOn(): Promise<void> {
    const now = performance.now();
    if (!this.#resumes.isDue(now)) return;
    this.#resumes.note(now);
    if (!this.#saidStopped) this.#options.onEvent({ type: "stopped" });
    this.#saidStopped = true;
    this.#letGoOnAt = now;
    await this.#options.run.resume().catch((error: unknown) => {
      if (!isOff(error)) this.trouble(`it can't be let go on: ${messageOf(error)}`);
    });
  }
}

/** A wait that can be cut short. */
class Alarm {
  #wake: () => void = () => undefined;
  #rang = false;
  readonly #listener: Disposable | undefined;

  constructor(signal: AbortSignal | undefined) {
    this.#listener = signal && addAbortListener(signal, () => this.ring());
  }

  ring(): void {
    this.#rang = true;
    this.#wake();
  }

  async wait(ms: number): Promise<void> {
    if (!this.#rang) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#rang = false;
  }

  silence(): void {
    this.#listener?.[Symbol.dispose]();
  }
}
