import type { ConnectOptions, NbdAddress, NbdClient } from "../../nbd/index.js";
import type { DigestAlgorithm } from "../digest/algorithms.js";
import type { OutageNews } from "../export/outages.js";
import type { Definition } from "../guest/keep-files.js";
import type { ImageFormat } from "../image/image.js";
import type { DiskSource, PullProgress } from "../pull/pull-image.js";
import type { RateLimit } from "../pull/rate-limit.js";
import type { Window } from "../pull/window.js";
import type { CompressionMethod } from "../qcow2/can-compress.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import type { BegunNote } from "./begun-note.js";
import type { ProveSettings } from "./prove-disk.js";

/** A disk to take into a point. */
export type PointDisk = ExportedPointDisk | ImportedPointDisk;

interface AnyPointDisk {
  /** The disk's target in the domain, for example `vda`. */
  readonly name: string;
  /** Why the disk is full although an increment might have been expected. */
  readonly reason?: string | undefined;
}

/** A disk that a server exports. */
export interface ExportedPointDisk extends AnyPointDisk {
  readonly address: NbdAddress;
  /** Take only what changed since the point `parent`. Undefined: a full copy. */
  readonly increment?: { readonly bitmap: string; readonly parent: Manifest } | undefined;
}

/** A disk that exists as a full image. The caller closes `source`. */
export interface ImportedPointDisk extends AnyPointDisk {
  readonly source: DiskSource;
  readonly address?: undefined;
  readonly increment?: undefined;
}

export interface TakePointOptions {
  readonly repository: Repository;
  readonly domain: { readonly name: string; readonly uuid: string | null };
  readonly disks: readonly PointDisk[];
  readonly checkpoint: Manifest["checkpoint"];
  /** Stored besides the disks, with the files that the domain starts with. */
  readonly definition?: Definition | undefined;
  readonly format: ImageFormat;
  /** Undefined: no digests. */
  readonly digests: DigestAlgorithm | undefined;
  /** qcow2 only: compress every cluster that shrinks by it. Undefined: no compression. */
  readonly compress?: CompressionMethod | undefined;
  readonly sync: boolean;
  /**
   * How many points this process takes at a time. They share the memory for an object store, which suffices for
   * three. Default 1.
   */
  readonly pointsAtOnce?: number | undefined;
  /** How much of the bases of increments is compared with the disks. */
  readonly proveBase?: ProveSettings | undefined;
  readonly tool: string;
  readonly connect: Omit<ConnectOptions, "metaContexts" | "optionalContexts" | "signal">;
  readonly window?: Window | undefined;
  /** Shared by all disks. */
  readonly rateLimit?: RateLimit | undefined;
  readonly signal?: AbortSignal | undefined;
  /**
   * Called before the commit, after the last byte was read and everything is on disk. Throws if the exports
   * may no longer show the same moment; then nothing is committed. Its signal fires when that is known
   * otherwise.
   */
  readonly confirm: (signal: AbortSignal) => Promise<void>;
  /**
   * Receives the opened clients as soon as they are open, and the caller closes them. Undefined: `takePoint`
   * closes them at its end.
   */
  readonly clients?: NbdClient[] | undefined;
  /** Called with every client that is being opened, before the server hears of it. */
  readonly onOpening?: ((client: Promise<NbdClient>) => void) | undefined;
  /** Whether every client has to stay connected until the caller closes it. */
  readonly clientsStay?: boolean | undefined;
  /**
   * What a later run needs to go on with this point, if this one is killed, and the point to go on with.
   * Undefined: nothing is kept for that. It needs digests.
   * @internal
   */
  readonly resumable?:
    | {
        /** The secret of the job: whoever does not know it can't make up a point that was begun. */
        readonly key: Buffer;
        /** What the later run compares. JSON. */
        readonly about: Readonly<Record<string, unknown>>;
        readonly begun: BegunNote | undefined;
      }
    | undefined;
  readonly onProgress?: ((disk: string, progress: PullProgress) => void) | undefined;
  /** Called when the reads of a disk wait for a lost connection, and when it is back. */
  readonly onOutage?: ((disk: string, news: OutageNews) => void) | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** The options of `takePoint` that are the same for every way to make a point. */
export type TakeSettings = Pick<
  TakePointOptions,
  | "format"
  | "digests"
  | "compress"
  | "sync"
  | "pointsAtOnce"
  | "proveBase"
  | "tool"
  | "connect"
  | "window"
  | "rateLimit"
  | "signal"
  | "onProgress"
  | "onOutage"
  | "onWarning"
>;

/** The name of a disk's journal in the folder of a point that is being made. */
export function journalName(disk: string): string {
  return `${disk}.journal`;
}
