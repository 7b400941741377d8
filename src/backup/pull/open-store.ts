import assert from "node:assert/strict";
import { hasCode } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";
import type { NewFiles } from "../host/new-files.js";
import type { Geometry, ImageFormat } from "../image/image.js";
import type { NewPlace } from "../image/new-file.js";
import type { Backing } from "../qcow2/writer.js";
import type { CompressedStoreOptions, ImageCompression } from "./compressed-store.js";
import { loadQcow2Writer } from "./create-image.js";
import { ImageJournal } from "./image-journal.js";
import type { Begun, DigestTarget, ImageStore } from "./image-store.js";
import type { JournalFile } from "./journal-file.js";
import type { JournalTarget, LeftJournal } from "./left-journal.js";
import { loadDigests, PlainStore } from "./plain-store.js";

/** The image to be made, and its files. */
export interface NewImageOptions {
  /** Elsewhere than on this machine, it is a qcow2 image. */
  readonly imagePath: NewPlace;
  readonly format: ImageFormat;
  /** qcow2 only: the backing file that the header names. */
  readonly backing?: Backing | undefined;
  /** Raw increments only: path of the map that describes the extents. */
  readonly mapPath?: string | undefined;
  /** Undefined: no digest file is made. */
  readonly digests?: DigestTarget | undefined;
  /**
   * qcow2 only; default: clusters are not compressed. An image elsewhere needs it, with or without a method.
   */
  readonly compress?: ImageCompression | undefined;
  /**
   * Kept while the image is pulled. It needs digests. Undefined: none is kept.
   * @internal
   */
  readonly journal?: JournalTarget | undefined;
  /** Flush to stable storage before returning. */
  readonly sync: boolean;
}

interface StoreImage {
  readonly geometry: Geometry;
  readonly complete: boolean;
  readonly segmentBytes: number;
  readonly journal: ImageJournal | undefined;
}

interface OpenedStore {
  readonly store: ImageStore;
  /** Undefined: the image is new. */
  readonly from?: Begun | undefined;
}

/**
 * Continues the image that a killed run left, if its journal is of this very image; otherwise makes a new
 * one.
 */
export async function openImageStore(
  options: NewImageOptions,
  image: StoreImage,
  files: NewFiles,
): Promise<OpenedStore> {
  const { imagePath: path, format, backing, mapPath, digests, compress, journal: target } = options;
  const all = { ...image, backing, digests };
  if (typeof path !== "string") {
    assert(compress !== undefined && format === "qcow2", "an image elsewhere is written from front to back");
    return { store: await (await compressedKind({ ...all, path, compress }, files)).create() };
  }
  const kind = compress
    ? await compressedKind({ ...all, path, compress }, files)
    : {
        create: () => PlainStore.create({ ...all, path, format, mapPath }, files),
        resume: (left: LeftJournal) => PlainStore.resume({ ...all, path, format, mapPath }, files, left),
      };
  if (target === undefined || image.journal === undefined) return { store: await kind.create() };
  files.expect(target.path);
  if (target.resume) {
    const journals = await import("./left-journal.js");
    const left = await journals.LeftJournal.open(target);
    // These are written anew.
    for (const each of [mapPath, digests?.path]) if (typeof each === "string") await files.removeOld(each);
    if (left?.isOf(headerOf(options, image))) {
      try {
        return await kind.resume(left);
      } catch (error) {
        await left.close();
        if (!isMissing(error) && !hasCode(error, "E_IMAGE_FILE")) throw error;
      }
    } else await left?.close();
    for (const each of [target.path, path]) await files.removeOld(each);
  }
  return { store: await kind.create() };
}

/**
 * Loads what such an image needs: `openImageStore` would do it, but once V8's flags are set, that takes longer.
 */
export async function loadImageStore(image: {
  readonly format: ImageFormat;
  readonly compress?: unknown;
  readonly digests: unknown;
  readonly journal?: boolean;
}): Promise<void> {
  const { format, compress, digests, journal = false } = image;
  if (journal && digests) {
    await Promise.all([import("./left-header.js"), import("./left-journal.js"), import("./journal-file.js")]);
  }
  if (compress) await import("./compressed-store.js");
  else {
    if (format === "qcow2") await loadQcow2Writer();
    if (digests) await loadDigests();
  }
}

/** Loads what compresses: a pull that doesn't starts sooner without. */
async function compressedKind(options: CompressedStoreOptions, files: NewFiles) {
  const { CompressedStore } = await import("./compressed-store.js");
  return {
    create: () => CompressedStore.create(options, files),
    resume: (left: LeftJournal) => CompressedStore.resume(options, files, left),
  };
}

/** What must be the same, so that an image can be continued. */
function headerOf(
  { format, compress, digests, journal }: NewImageOptions,
  { geometry, complete }: Pick<StoreImage, "geometry" | "complete">,
): object {
  return {
    ...journal?.facts,
    format,
    compress: compress?.method ?? null,
    digests: digests?.algorithm ?? null,
    geometry,
    complete,
  };
}

/** Undefined if no journal is wanted. It makes its file with the first flush. */
export async function journalOf(
  options: NewImageOptions,
  image: Pick<StoreImage, "geometry" | "complete">,
): Promise<ImageJournal | undefined> {
  const { journal, digests, sync } = options;
  if (journal === undefined || digests === undefined) return undefined;
  // Loaded here because a pull that keeps none, as that of a single export, starts sooner without.
  const { JournalFile } = await import("./journal-file.js");
  const create = (): Promise<JournalFile> =>
    JournalFile.create(journal.path, journal.key, headerOf(options, image));
  return new ImageJournal({ create, sync });
}
