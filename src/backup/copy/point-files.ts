import { largestKept } from "../repository/kept-files.js";
import { diskOf, imageName, type Manifest } from "../repository/manifest.js";
import { manifestTextOf } from "../repository/manifest-text.js";

const MIB = 1024 * 1024;
/** What an image may have beside twice its disk, and a digest file beside its records. */
const SPARE_BYTES = 64 * MIB;
/** A record of a digest file for one cluster: head, masks and digest. */
const MOST_RECORD_BYTES = 64;
/** A line for each of 32 million extents. */
const MOST_MAP_BYTES = 4096 * MIB;

/** The files that a manifest names, but for itself. */
export function fileNamesOf({ disks, files = [] }: Manifest): string[] {
  const ofDisks = disks.flatMap(({ file, map, digests }) =>
    [file, map?.file ?? [], digests?.file ?? []].flat(),
  );
  return [...new Set([...files.map(({ file }) => file), ...ofDisks])];
}

/**
 * What a file of a point is called in its copy: where a prune of an object store is replacing the image, as
 * the images name it that are based on it.
 */
export function copiedName(point: Pick<Manifest, "aside">, file: string): string {
  return imageName(point, { file });
}

/** A point as its copy has it: no prune is at work there. */
export function asCopied(point: Manifest): Manifest {
  const { aside: _, ...others } = point;
  return { ...others, disks: point.disks.map((disk) => ({ ...disk, file: copiedName(point, disk.file) })) };
}

/**
 * The same of the text of its manifest, with what this program knows nothing of.
 * @throws {DamageError} as `manifestTextOf`
 */
export function asCopiedText(text: string, point: Manifest): string {
  if (point.aside === undefined) return text;
  const {
    aside: _,
    revision: __,
    ...others
  } = JSON.parse(text) as {
    aside: unknown;
    revision?: unknown;
    disks: { readonly file: string }[];
  };
  const disks = others.disks.map((disk) => ({ ...disk, file: copiedName(point, disk.file) }));
  return manifestTextOf({ ...others, disks });
}

export function imageBytesOf(point: Manifest, disk: string): number {
  return diskOf(point, disk)?.dataBytes ?? 0;
}

/**
 * Bytes that a file of a point has at most; the same of images allows for tables, and for what a prune left
 * unused.
 */
export function mostBytesOf({ disks, files = [] }: Manifest, name: string): number {
  const kept = files.find(({ file }) => file === name);
  if (kept) return Math.min(kept.length, largestKept(kept.role));
  for (const { file, format, digests, virtualSize, clusterSize } of disks) {
    const clusters = Math.ceil(virtualSize / clusterSize);
    if (file === name) return format === "raw" ? virtualSize : 2 * virtualSize + SPARE_BYTES;
    if (digests?.file === name) return clusters * MOST_RECORD_BYTES + SPARE_BYTES;
  }
  return MOST_MAP_BYTES;
}

/** Bytes of data that a point stores, which is nearly all that is copied of it. */
export function storedBytesOf({ disks }: Manifest): number {
  return disks.reduce((sum, { storedBytes }) => sum + storedBytes, 0);
}
