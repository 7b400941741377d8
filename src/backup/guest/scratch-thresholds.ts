import { setTimeout as sleep } from "node:timers/promises";
import { anySignal } from "../../nbd/index.js";
import { hasCode, messageOf, type PreconditionError } from "../base/errors.js";
import { type ImageName, type ImageSize, imageSizes, setThreshold } from "../libvirt/image-sizes.js";
import { type DomainRef, isJobGone, type Libvirt, PATIENCE_MS } from "../libvirt/libvirt.js";
import { type DomainEvent, EVENT } from "../libvirt/rpc/events.js";
import { fallToNextLine, type ScratchSample } from "./judge-scratch.js";
import { ScratchPlace, type ScratchPolicy } from "./scratch-place.js";

/**
 * Scratch images that share their room: files of one file system, or the one that has a device for itself.
 */
export interface ScratchRoom {
  /** The folder or device. */
  readonly path: string;
  readonly images: readonly ImageName[];
  /** Absent for a device: libvirt tells its size. */
  readonly folder?: {
    /** Asks for the bytes that are free there now. It may take a second. */
    readonly free: () => Promise<number>;
    /** The bytes that were free before the images were there, if that was asked. */
    readonly before?: Promise<number> | undefined;
  };
}

export interface ScratchThresholds {
  readonly libvirt: Libvirt;
  readonly domain: DomainRef;
  readonly rooms: readonly ScratchRoom[];
  /**
   * Milliseconds after which what is free in a folder is measured again, though nothing happens; default 10
   * s.
   */
  readonly restMs?: number | undefined;
}

/** Time between two looks that show how fast the room goes, and for how long they follow an event. */
const LOOK_EVERY_MS = 1000;
const MOVING_MS = 10_000;
/** What others write into a folder raises no alarm: jobs of other domains, for example. */
const REST_MS = 10_000;
/** An image grows by this many bytes between two events at least, or by this part of a small room. */
const LEAST_STEP = 1024 ** 2;
const LEAST_PART = 1 / 64;

/**
 * Watches scratch images through QEMU, on whatever host and device they are. QEMU tells in the moment in
 * which a write passes the threshold of an image, and then that image needs a new one. A threshold is only an
 * alarm: what counts is the room that is found when it goes off.
 *
 *     |-- allocation --|------ step ------>| threshold          of each image: together they reach the line
 *     |----- used by all -----|------- left -------|-- line ---|     no sooner than one of them goes off
 *
 * Resolves after `done` has fired. Never rejects: that something can't be watched is a warning.
 *
 * @param onShort called when the room is so short that the job has to be given up
 */
export async function watchThresholds(
  { libvirt, domain, rooms, restMs = REST_MS }: ScratchThresholds,
  policy: ScratchPolicy,
  done: AbortSignal,
  onShort: (error: PreconditionError) => void,
): Promise<void> {
  const asking = libvirt.withSignal(done).withPatience(PATIENCE_MS);
  const watched = rooms.map((room) => new WatchedRoom(room, policy));
  const bell = new Bell();
  const passed = (event: DomainEvent): void => {
    if (event.kind !== "blockThreshold") return;
    // At once: a question may have to wait until libvirt is done with others of this domain.
    for (const room of watched) report(room.passed(event));
    bell.ring();
  };
  const report = (error: PreconditionError | undefined): void => {
    if (error && !done.aborted) onShort(error);
  };
  const look = async (mustMeasure: boolean): Promise<boolean> => {
    const sizes = await imageSizes(asking, domain);
    let areSet = true;
    for (const room of watched) {
      report(await room.look(sizes, mustMeasure ? report : undefined));
      areSet &&= room.isKnown;
      for (const alarm of room.alarms()) {
        const isSet = await setAlarm(asking, domain, alarm);
        if (isSet) room.isSet(alarm);
        areSet &&= isSet;
      }
    }
    return areSet;
  };
  let isTold = false;
  while (!done.aborted) {
    try {
      const { lost, stop } = await asking.calls.listen(domain, [EVENT.blockThreshold], passed);
      // What went off while nobody listened is found by looking.
      bell.ring();
      try {
        await lookAtEachRing(bell, { until: anySignal(done, lost), restMs }, look);
      } finally {
        await stop();
      }
    } catch (error) {
      // A job that is gone needs no scratch space.
      if (done.aborted || isJobGone(error)) return;
      const message = `the scratch space of ${policy.domain} can't be watched now, and is looked at again as soon as that is possible: ${messageOf(error)}`;
      if (!isTold) policy.onWarning?.(message);
      isTold = true;
    }
    // A daemon that hangs up each time must not be asked all the time.
    await sleep(LOOK_EVERY_MS, undefined, { signal: done }).catch(() => undefined);
  }
}

/**
 * @param look called with whether what is free has to be measured; resolves with whether it need not be
 *   called again before the next ring or the end of a rest
 */
async function lookAtEachRing(
  bell: Bell,
  { until, restMs }: { readonly until: AbortSignal; readonly restMs: number },
  look: (mustMeasure: boolean) => Promise<boolean>,
): Promise<void> {
  let rungAt = performance.now();
  let measuredAt = rungAt;
  let mayRest = true;
  while (!until.aborted) {
    const isMoving = !mayRest || performance.now() - rungAt < MOVING_MS;
    const hasRung = await bell.heard(until, isMoving ? LOOK_EVERY_MS : restMs);
    if (until.aborted) return;
    const now = performance.now();
    if (hasRung) rungAt = now;
    const mustMeasure = hasRung || now - measuredAt >= restMs;
    if (mustMeasure) measuredAt = now;
    mayRest = await look(mustMeasure);
  }
}

/** @returns whether it is set; libvirt may be too busy with the domain */
async function setAlarm(libvirt: Libvirt, domain: DomainRef, { image, at }: Alarm): Promise<boolean> {
  try {
    await setThreshold(libvirt, domain, image, at);
    return true;
  } catch (error) {
    if (["E_DOMAIN_BUSY", "E_LIBVIRT_REFUSED"].some((code) => hasCode(error, code))) return false;
    throw error;
  }
}

interface Alarm {
  readonly image: ImageName;
  /** Offset in bytes. */
  readonly at: number;
}

class WatchedRoom {
  readonly #room: ScratchRoom;
  readonly #place: ScratchPlace;
  /** What is known of its images, by their index. */
  readonly #images = new Map<number, ImageSize>();
  /** The thresholds that are set, by the index of their image. */
  readonly #thresholds = new Map<number, number>();
  /** What was free in the folder while its images took so much; what they have taken since is known. */
  #measured: Omit<ScratchSample, "time"> | undefined;
  #isMeasuring = false;
  /** The growth of all images together after which to look again. */
  #ahead: number | undefined;
  #size = 0;

  constructor(room: ScratchRoom, policy: ScratchPolicy) {
    this.#room = room;
    this.#place = new ScratchPlace(
      `the scratch images of ${policy.domain} in ${room.path}`,
      room.path,
      policy,
    );
  }

  /** Whether libvirt has told of all its images: it leaves them out while it is busy with the domain. */
  get isKnown(): boolean {
    return this.#images.size === this.#room.images.length;
  }

  /** Takes into account that a write passed a threshold. @returns the error if the room is short */
  passed({ device, end }: DomainEvent & { kind: "blockThreshold" }): PreconditionError | undefined {
    const index = Number(/\[(\d+)\]$/.exec(device)?.[1]);
    const image = this.#images.get(index);
    if (!image) return undefined;
    this.#images.set(index, { ...image, allocation: Math.max(image.allocation, end) });
    return this.#judge();
  }

  /**
   * @param sizes all images of the domain
   * @param onMeasured called with the error, if the room is short, once what is free was measured anew;
   *   undefined: that is not to be measured
   * @returns the error if the room is short
   */
  async look(
    sizes: readonly ImageSize[],
    onMeasured: ((error: PreconditionError | undefined) => void) | undefined,
  ): Promise<PreconditionError | undefined> {
    const found = sizes.filter(({ index }) => this.#room.images.some((image) => image.index === index));
    for (const image of found) this.#images.set(image.index, image);
    // They are gone with the job.
    if (found.length === 0) return undefined;
    const { folder } = this.#room;
    if (folder && this.#measured === undefined) {
      const before = await folder.before?.catch(() => undefined);
      this.#measured =
        before === undefined ? { used: this.#used, left: await folder.free() } : { left: before, used: 0 };
    } else if (folder && onMeasured) void this.#measure(folder.free).then(() => onMeasured(this.#judge()));
    return this.#judge();
  }

  /** The thresholds that have to be set now. */
  alarms(): readonly Alarm[] {
    if (this.#ahead === undefined) return [];
    const { size } = this.#images;
    const least = Math.min(LEAST_STEP, (this.#size * LEAST_PART) / size);
    const step = Math.ceil(Math.max(this.#ahead / size, least));
    const alarms = [...this.#images.values()].map((image) => ({ image, at: image.allocation + step }));
    return alarms.filter(({ image, at }) => {
      const set = this.#thresholds.get(image.index);
      // None, one that has gone off, or one that would come too late.
      return set === undefined || set <= image.allocation || at < set;
    });
  }

  isSet({ image, at }: Alarm): void {
    this.#thresholds.set(image.index, at);
  }

  get #used(): number {
    return [...this.#images.values()].reduce((total, { allocation }) => total + allocation, 0);
  }

  #judge(): PreconditionError | undefined {
    const devices = [...this.#images.values()].reduce((total, { physical }) => total + physical, 0);
    const all = this.#measured ? this.#measured.used + this.#measured.left : devices;
    const used = this.#used;
    const left = Math.max(0, all - used);
    const { room, verdict, error } = this.#place.judge({ time: performance.now(), used, left });
    this.#size = room;
    this.#ahead = fallToNextLine(room, left, verdict);
    return error;
  }

  /** In the background: no alarm waits for it. */
  async #measure(free: () => Promise<number>): Promise<void> {
    if (this.#isMeasuring) return;
    this.#isMeasuring = true;
    const used = this.#used;
    try {
      this.#measured = { used, left: await free() };
    } catch {
      // What was measured before still counts.
    } finally {
      this.#isMeasuring = false;
    }
  }
}

/** Wakes up who waits for it, or will. */
class Bell {
  #hasRung = false;
  #wake: () => void = () => undefined;

  ring(): void {
    this.#hasRung = true;
    this.#wake();
  }

  /** Waits for a ring, at the longest for `timeoutMs` or until the signal fires. @returns whether it rang */
  async heard(until: AbortSignal, timeoutMs: number): Promise<boolean> {
    if (!this.#hasRung && !until.aborted) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(wake, timeoutMs);
        function wake(): void {
          clearTimeout(timer);
          until.removeEventListener("abort", wake);
          resolve();
        }
        until.addEventListener("abort", wake, { once: true });
        this.#wake = wake;
      });
    }
    const rang = this.#hasRung;
    this.#hasRung = false;
    return rang;
  }
}
