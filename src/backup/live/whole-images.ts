/**
 * The disks of a live restore rebuilt by an ordinary restore, while its guest already runs. QEMU then adds
 * what the guest has written. That takes a fraction of the time in which QEMU fills an image by itself, since
 * its block pull reads 512 KiB at a time, one after the other.
 */
import { addAbortListener } from "node:events";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DamageError, hasCode, messageOf } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import { publish, temporaryPathFor } from "../host/publish.js";
import { RateLimit } from "../pull/rate-limit.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { restore } from "../restore/restore.js";
import type { LiveState } from "./live-state.js";
import { identify, isOurs, removeOurs } from "./made-files.js";

interface WholeImagesOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  readonly folder: HeldFolder;
  readonly state: Pick<LiveState, "disks" | "made" | "place">;
  /** Called with each file that is about to get its name; settles when that can't be forgotten. */
  readonly noteMade: (made: LiveState["made"]) => Promise<void>;
  /** Replaces the state file; durable when it settles. */
  readonly write: () => Promise<void>;
  /** Disks that are on their whole image already, or will be at the next start: nothing is made of those. */
  readonly standing: ReadonlySet<string>;
  /** Replace a file that has the name of a whole image. */
  readonly force: boolean;
  /** Bytes per second; undefined: no limit. */
  readonly rate: number | undefined;
  readonly signal: AbortSignal | undefined;
  /** Nothing is restored before it has settled, which it does soon. Default: at once. */
  readonly after?: Promise<void> | undefined;
  /** How long to wait, in milliseconds, each time that a store is away; then QEMU fills the disk. */
  readonly waitsMs?: readonly number[] | undefined;
  readonly onProgress: (disk: string, done: number, total: number) => void;
  /** A disk can't be rebuilt so, or not now. */
  readonly onFailure: (message: string) => void;
}

/**
 * An object store that is away for so long that a restore fails, and may come back; and one where other
 * points were pruned meanwhile.
 */
const PASSING = ["E_S3_UNREACHABLE", "E_S3_FAILED", "E_S3_TRUNCATED", "E_PRUNED_MEANWHILE"];
/** After the last one QEMU fills the disk, which loses nothing at the next outage. */
const WAITS_MS = [5000, 20_000, 60_000, 60_000];

export type WholeImage =
  | { readonly state: "making" | "failed" }
  /** It shows what the point does, and is based on nothing. */
  | { readonly state: "made"; readonly path: string };

type Disk = LiveState["disks"][number];

export class WholeImages implements AsyncDisposable {
  readonly #options: WholeImagesOptions;
  readonly #images = new Map<string, WholeImage>();
  readonly #stop = new AbortController();
  readonly #listener: Disposable | undefined;
  readonly #rateLimit: RateLimit | undefined;
  #done: Promise<void> = Promise.resolve();
  #onChange: () => void = () => undefined;

  /** Begins at once, with one disk after the other. */
  constructor(options: WholeImagesOptions) {
    this.#options = options;
    const { signal, state, standing, rate, after } = options;
    if (after) this.#done = after;
    this.#rateLimit = rate === undefined ? undefined : new RateLimit(rate);
    this.#listener = signal && addAbortListener(signal, () => this.#stop.abort(signal.reason));
    for (const disk of state.disks) {
      if (!disk.whole || disk.isSwitched === true || disk.isLeftToQemu === true) continue;
      if (!standing.has(disk.name)) this.#begin(disk, { isStale: false });
    }
  }

  /** Undefined: the disk gets none. */
  of(disk: string): WholeImage | undefined {
    return this.#images.get(disk);
  }

  /** @param wake called when an image is made, or can't be */
  watch(wake: () => void): void {
    this.#onChange = wake;
  }

  /**
   * Call it before a copy into the image begins, for a guest that runs on its own image. If the image is
   * still `made` then, the copy may begin. One into which a copy had begun before is restored again: if QEMU
   * died since, it shows writes that the guest's own image has lost.
   */
  async prepareCopy(name: string): Promise<void> {
    const disk = this.#diskOf(name);
    if (!(await this.#isThere(disk))) {
      await this.#leaveToQemu(disk, `${this.#pathOf(disk)} was moved, removed or replaced`);
    } else if (disk.isSwitching === true) {
      const doubt = `it is not known whether its guest was on ${this.#pathOf(disk)}, so that file stays: look at it`;
      await this.#leaveToQemu(disk, doubt);
    } else if (disk.hasBegun === true) this.#begin(disk, { isStale: true });
    else {
      disk.hasBegun = true;
      await this.#options.write();
    }
  }

  /**
   * Call it before a guest is switched over to the image, when a copy is ready.
   * @returns false: the path leads to another file than the one that was made, or nothing was copied into it
   */
  async maySwitch(name: string): Promise<boolean> {
    const disk = this.#diskOf(name);
    if (disk.hasBegun !== true || !(await this.#isThere(disk))) return false;
    disk.isSwitching = true;
    await this.#options.write();
    return true;
  }

  /** QEMU fills the disk's own image from now on, and may need the room. */
  async giveUp(name: string): Promise<void> {
    if (this.of(name)?.state !== "made") return;
    const disk = this.#diskOf(name);
    this.#images.set(name, { state: "failed" });
    disk.isLeftToQemu = true;
    await this.#options.write();
    const { folder, state } = this.#options;
    if (disk.isSwitching !== true && disk.whole) await removeOurs(folder, state, disk.whole.file);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#listener?.[Symbol.dispose]();
    await this.#done;
  }

  /** @param options.isStale the image that is there is not to be used */
  #begin(disk: Disk, { isStale }: { readonly isStale: boolean }): void {
    this.#images.set(disk.name, { state: "making" });
    this.#done = this.#done.then(() => this.#makeOne(disk, isStale));
  }

  async #makeOne(disk: Disk, isStale: boolean): Promise<void> {
    const { folder, state } = this.#options;
    const { name, whole } = disk;
    if (!whole || this.#stop.signal.aborted) return;
    for (const wait of [...(this.#options.waitsMs ?? WAITS_MS), undefined]) {
      try {
        await sweepHalf(folder, whole.temporary);
        if (isStale) {
          await removeOurs(folder, state, whole.file);
          await folder.sync();
        }
        if (!(await this.#isThere(disk))) await this.#make(disk, whole);
        this.#images.set(name, { state: "made", path: this.#pathOf(disk) });
        break;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (wait === undefined || !PASSING.some((code) => hasCode(error, code))) {
          // QEMU finds the damage too, unless the guest has written over it before.
          this.#fail(disk, error instanceof DamageError ? "a place of it is damaged" : messageOf(error));
          break;
        }
        const next = `this is begun again in ${wait / 1000} s`;
        this.#options.onFailure(`${name} can't be restored now (${messageOf(error)}): ${next}`);
        await sleep(wait, undefined, { signal: this.#stop.signal }).catch(() => undefined);
        if (this.#stop.signal.aborted) return;
      }
    }
    this.#onChange();
  }

  async #make(disk: Disk, whole: NonNullable<Disk["whole"]>): Promise<void> {
    const { repository, domain, point, folder, state, noteMade, onProgress, force } = this.#options;
    if (disk.isSwitching === true) throw new RangeError(`${whole.file}, which its guest may need, is gone`);
    const temporary = join(state.place, whole.temporary);
    const { signal } = this.#stop;
    let isChecked = false;
    const work = async (): Promise<void> => {
      const restored = await restore({
        ...{ repository, domain, point, targets: [{ disk: disk.name, path: temporary, format: "qcow2" }] },
        ...{ force: true, sync: true, rateLimit: this.#rateLimit, signal },
        onProgress: (_, { position, virtualSize }) => onProgress(disk.name, position, virtualSize),
      });
      isChecked = restored.every(({ checked }) => checked);
    };
    await repository.reading(domain, work, signal).catch((error: unknown) => {
      // Each cluster is what the manifests said that were read, whatever a prune has done to others since.
      if (!isChecked || !hasCode(error, "E_PRUNED_MEANWHILE")) throw error;
    });
    const finished = [{ temporary, final: join(state.place, whole.file) }];
    disk.hasBegun = false;
    await noteMade(await identify(folder, finished));
    await publish(finished, { force, sync: true });
  }

  async #leaveToQemu(disk: Disk, why: string): Promise<void> {
    disk.isLeftToQemu = true;
    this.#fail(disk, why);
    await this.#options.write();
  }

  #fail({ name, file }: Disk, why: string): void {
    this.#images.set(name, { state: "failed" });
    const next = `QEMU fills ${file} instead, which takes longer`;
    this.#options.onFailure(`${name} can't be restored beside its guest (${why}): ${next}`);
  }

  async #isThere({ whole }: Disk): Promise<boolean> {
    const { folder, state } = this.#options;
    return whole !== undefined && (await isOurs(folder, state, whole.file));
  }

  #pathOf({ file, whole }: Disk): string {
    return join(this.#options.state.place, whole?.file ?? file);
  }

  #diskOf(name: string): Disk {
    const disk = this.#options.state.disks.find((each) => each.name === name);
    if (!disk) throw new RangeError(`there is no disk ${name}`);
    return disk;
  }
}

/** Under which name a whole image is made, in the folder of its final name. */
export function temporaryNameFor(file: string): string {
  return basename(temporaryPathFor(file));
}

/** Removes what killed restores have left: their names begin with that of their target, which is random. */
async function sweepHalf(folder: HeldFolder, temporary: string): Promise<void> {
  for (const name of await folder.names()) {
    if (name === temporary || name.startsWith(`.${temporary}.`)) await folder.unlink(name);
  }
}
