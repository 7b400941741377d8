import { anySignal } from "../../nbd/index.js";
import { BackupError, DamageError, PreconditionError } from "../base/errors.js";
import { Layer } from "../chain/layer.js";
import { findWrongRefcounts } from "../qcow2/check.js";
import { hasLiveNote } from "../repository/live-note.js";
import type { DiskManifest, Manifest } from "../repository/manifest.js";
import { replacingManifest, withImagesAside } from "../repository/merged-manifest.js";
import { manifestText } from "../repository/read-manifest.js";
import type { Repository } from "../repository/repository.js";
import type { KeptVersion, StoredMerge, StoredPatch, StoreWriting } from "../storage/stored-writing.js";
import { refcountBytes } from "./folder-mender.js";
import type { ImageMender, WrongRefcount } from "./image-mender.js";
import { type ClusterMend, type DamagedCluster, damagedClusters } from "./mend-clusters.js";
import { type DigestsPlace, isDigestFileRight } from "./remake-digests.js";
import { pointsRead, sparedText } from "./spared-points.js";

/** What takes the place of files of a disk. */
interface Replacement {
  /** The disk's entry in the manifest from then on. */
  readonly disk: DiskManifest;
  /** The names of images that are replaced. */
  readonly images: readonly string[];
  /** Files that the manifest names no more. */
  readonly stale: readonly string[];
  /** @throws {BackupError} `E_S3_FAILED`: what lies there now is not what it has to be */
  readonly prove: () => Promise<void>;
}

interface StoreMenderOptions {
  readonly repository: Repository;
  readonly domain: string;
  readonly point: Manifest;
  readonly disk: DiskManifest;
  readonly signal?: AbortSignal | undefined;
  /** Gets what stays of files that were replaced, in a bucket that keeps versions. */
  readonly onVersions: (versions: readonly KeptVersion[]) => void;
  /** @internal tests end the process at each step */
  readonly onStep?: ((step: string) => void) | undefined;
}

/**
 * For a dry run: a mend has the manifest name other files.
 * @throws {DamageError} `E_MANIFEST`: the manifest can't be changed, so the point would stay as it is
 */
export async function assertReplaceable(
  { repository, domain }: Pick<StoreMenderOptions, "repository" | "domain">,
  point: Manifest,
  disk: DiskManifest,
): Promise<void> {
  await using folder = await repository.openPoint(domain, point.id);
  withImagesAside(await manifestText(folder, point), new Map([[disk.file, `${disk.file}~00000000`]]));
}

/**
 * Mends an image in an object store, where nothing is ever changed: a new image takes the place of the old
 * one, as in a merge (`StoredMerge`). The store copies what is sound. The new image is compared with the old
 * one and with its digests, before anything counts on it.
 */
export class StoreMender implements ImageMender {
  readonly isDeferred = true;
  readonly digests: DigestsPlace;
  readonly #writing: StoreWriting;
  readonly #options: StoreMenderOptions;
  readonly #patches: StoredPatch[] = [];
  /** Guest offsets of the damaged clusters that stay so. */
  readonly #left = new Set<number>();
  readonly #gone = new Set<number>();

  constructor(writing: StoreWriting, options: StoreMenderOptions) {
    this.#writing = writing;
    this.#options = options;
    this.digests = { put: (write, sha256) => this.#putDigests(write, sha256) };
  }

  async refcounts(entries: readonly WrongRefcount[]): Promise<void> {
    for (const entry of entries) {
      const bytes = refcountBytes(entry);
      this.#patches.push({ position: entry.position, length: bytes.length, read: async () => bytes });
    }
  }

  async cluster({ guestOffset }: DamagedCluster, { again, places }: ClusterMend): Promise<void> {
    for (const { offset, length, position } of places) {
      const read = async (): Promise<Buffer | undefined> => {
        const content = await again();
        if (!content) this.#gone.add(guestOffset);
        return content?.subarray(offset, offset + length);
      };
      this.#patches.push({ position, length, read });
    }
  }

  leave({ guestOffset }: DamagedCluster): void {
    this.#left.add(guestOffset);
  }

  async finish(): Promise<ReadonlySet<number>> {
    if (this.#patches.length === 0) return this.#gone;
    const { disk, onStep } = this.#options;
    await this.#replace(async (merge) => {
      await merge.patch(disk.file, this.#patches);
      onStep?.(`patched ${disk.file}`);
      return { disk, images: [disk.file], stale: [], prove: () => this.#proveImage() };
    });
    return this.#gone;
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** @param make uploads what is new; undefined: nothing is to be replaced after all */
  async #replace(make: (merge: StoredMerge) => Promise<Replacement | undefined>): Promise<boolean> {
    const { domain, point, signal: stop, onStep, onVersions } = this.#options;
    if (!this.#writing.canMerge) throw cannotReplace(domain);
    const { lost } = this.#writing;
    const signal = anySignal(stop, lost);
    const readBy = await pointsRead(this.#options.repository, domain);
    const refuse = (records: readonly { readonly point: string; readonly name: string }[]): void => {
      const live = records.find((each) => hasLiveNote([each.name]) && readBy(each.point).has(point.id));
      if (live) throw isRead(domain, point.id, live.point);
    };
    const merge = await this.#writing.merge(point.id, { signal, refuse });
    try {
      const made = await make(merge);
      if (!made) {
        await merge.discard();
        return false;
      }
      signal.throwIfAborted();
      const { disk, images, prove, stale } = made;
      const disks = point.disks.map((each) => (each.name === disk.name ? disk : each));
      const versions = await merge.commit({
        aside: (text) => withImagesAside(text, new Map(images.map((file) => [file, merge.nameOf(file)]))),
        merged: (text) => replacingManifest(text, { ...point, disks }),
        ...{ prove, stale, onStep },
        refuse,
      });
      if (versions.length > 0) onVersions(versions);
      return true;
    } catch (error) {
      // The next run does it otherwise.
      await merge.discard().catch(() => undefined);
      throw error;
    }
  }

  async #putDigests(write: Parameters<DigestsPlace["put"]>[0], sha256: string): Promise<boolean> {
    const { domain, point, disk, onStep } = this.#options;
    const { digests } = disk;
    if (!digests) return false;
    return await this.#replace(async (merge) => {
      const file = merge.nameOf(digests.file);
      if ((await write(merge.add(file))) !== sha256) return undefined;
      onStep?.(`made ${digests.file}`);
      const made = { ...disk, digests: { ...digests, file } };
      const prove = async (): Promise<void> => {
        const { repository, signal } = this.#proving();
        await using folder = await repository.openPoint(domain, point.id);
        if (!(await isDigestFileRight(folder, made, signal))) throw this.#isOther(file);
      };
      return { disk: made, images: [], stale: [digests.file], prove };
    });
  }

  /** Each byte that a digest tells of is read: no cluster is damaged that was not so before. */
  async #proveImage(): Promise<void> {
    const { domain, point, disk } = this.#options;
    const { repository, signal } = this.#proving();
    await using folder = await repository.openPoint(domain, point.id);
    try {
      if (disk.format === "qcow2") {
        const { isDamaged, entries } = await findWrongRefcounts(folder.at(disk.file), { signal });
        if (isDamaged || entries.length > 0) throw this.#isOther(disk.file);
      }
      const opened = await repository.openPoint(domain, point.id);
      await using layer = await Layer.open(opened, point.id, disk, { signal });
      for await (const { guestOffset } of damagedClusters(layer, { sources: [], compressed: true, signal })) {
        if (!this.#left.has(guestOffset) && !this.#gone.has(guestOffset)) throw this.#isOther(disk.file);
      }
    } catch (error) {
      if (error instanceof DamageError) throw this.#isOther(disk.file, error);
      throw error;
    }
  }

  /**
   * What a mend is proven with. That takes as long as to read the image, so the command's signal ends it, and
   * the mend is undone.
   */
  #proving(): { readonly repository: Repository; readonly signal: AbortSignal } {
    const signal = anySignal(this.#options.signal, this.#writing.over);
    return { repository: this.#options.repository.withSignal(signal), signal };
  }

  #isOther(file: string, cause?: unknown): BackupError {
    const { repository, domain, point } = this.#options;
    const path = `${repository.pointFolder(domain, point.id)}/${file}`;
    const message = `${path} was mended, and what the store has put there is something else: it does not store or copy what it is asked to. The point is as it was before`;
    return new BackupError("E_S3_FAILED", message, { cause, details: { domain, point: point.id } });
  }
}

function cannotReplace(domain: string): PreconditionError {
  const message = `the store can't replace an object on condition, or takes no notice of it in this bucket, so a process that has lost the lease could undo a mend: no point of ${domain} was mended. Take a full backup (nbdpull backup --level full), or copy all objects to a folder (rclone copy) and repair that`;
  return new PreconditionError("E_S3_LACKS", message, { details: { domain } });
}

function isRead(domain: string, id: string, live: string): PreconditionError {
  const details = { domain, point: id, live };
  return new PreconditionError("E_LIVE", sparedText(domain, id, live), { details });
}
