/**
 * The disks of a live restore rebuilt by an ordinary restore, while its guest already runs. QEMU then adds
 * what the guest has written. That takes a fraction of the time in which QEMU fills an image by itself, since
 * its block pull reads 512 KiB at a time, one after the other.
 */
import { addAbortListener } from "node:events";
import { basename, join } from "node:path";
import { DamageError, messageOf } from "../base/errors.js";
import type { HeldFolder } from "../host/held-folder.js";
import { publish, temporaryPathFor } from "../host/publish.js";
import { RateLimit } from "../pull/rate-limit.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { restore } from "../restore/restore.js";
import type { LiveState } from "./live-state.js";
import { identify, isOurs } from "./made-files.js";

interface WholeImagesOptions {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: Manifest;
  readonly folder: HeldFolder;
  readonly state: Pick<LiveState, "disks" | "made" | "place">;
  /** Called with each file that is about to get its name; settles when that can't be forgotten. */
  readonly noteMade: (made: LiveState["made"]) => Promise<void>;
  /** Replace a file that has the name of a whole image. */
  readonly force: boolean;
  /** Bytes per second; undefined: no limit. */
  readonly rate: number | undefined;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (disk: string, done: number, total: number) => void;
  /** A disk can't be rebuilt so. */
  readonly onFailure: (message: string) => void;
}

export type WholeImage =
  | { readonly state: "making" | "failed" }
  /** It shows what the point does, and is based on nothing. */
  | { readonly state: "made"; readonly path: string };

export class WholeImages implements AsyncDisposable {
  readonly #options: WholeImagesOptions;
  readonly #images = new Map<string, WholeImage>();
  readonly #stop = new AbortController();
  readonly #listener: Disposable | undefined;
  readonly #done: Promise<void>;
  #onChange: () => void = () => undefined;

  /** Begins at once, with one disk after the other. */
  constructor(options: WholeImagesOptions) {
    this.#options = options;
    const { signal, state } = options;
    for (const { name, whole } of state.disks) if (whole) this.#images.set(name, { state: "making" });
    this.#listener = signal && addAbortListener(signal, () => this.#stop.abort(signal.reason));
    this.#done = this.#makeAll();
  }

  /** Undefined: the disk gets none. */
  of(disk: string): WholeImage | undefined {
    return this.#images.get(disk);
  }

  /** @param wake called when an image is made, or can't be */
  watch(wake: () => void): void {
    this.#onChange = wake;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#listener?.[Symbol.dispose]();
    await this.#done;
  }

  async #makeAll(): Promise<void> {
    const { folder, state } = this.#options;
    const rateLimit = this.#options.rate === undefined ? undefined : new RateLimit(this.#options.rate);
    for (const { name, whole, isSwitched } of state.disks) {
      if (!whole || isSwitched === true) continue;
      const path = join(state.place, whole.file);
      try {
        await sweepHalf(folder, whole.temporary);
        if (!(await isOurs(folder, state, whole.file))) await this.#make(name, whole, rateLimit);
        this.#images.set(name, { state: "made", path });
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        this.#images.set(name, { state: "failed" });
        const next = `QEMU fills ${state.disks.find((each) => each.name === name)?.file} instead, which takes longer`;
        // QEMU finds the damage too, unless the guest has written over it before.
        const why = error instanceof DamageError ? "a place of it is damaged" : messageOf(error);
        this.#options.onFailure(`${name} can't be restored beside its guest (${why}): ${next}`);
      }
      this.#onChange();
    }
  }

  async #make(
    disk: string,
    whole: NonNullable<LiveState["disks"][number]["whole"]>,
    rateLimit: RateLimit | undefined,
  ): Promise<void> {
    const { repository, domain, point, folder, state, noteMade, onProgress, force } = this.#options;
    const temporary = join(state.place, whole.temporary);
    await restore({
      ...{ repository, domain, point, targets: [{ disk, path: temporary, format: "qcow2" }] },
      ...{ force: true, sync: true, rateLimit, signal: this.#stop.signal },
      onProgress: (_, { position, virtualSize }) => onProgress(disk, position, virtualSize),
    });
    const finished = [{ temporary, final: join(state.place, whole.file) }];
    await noteMade(await identify(folder, finished));
    await publish(finished, { force, sync: true });
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
