import { anySignal } from "../../nbd/index.js";
import { keepLocally } from "../storage/kept-locally.js";
import type { StoredFolder } from "../storage/stored-folder.js";
import type { StoredPointOptions as PointOptions, StoreWriting } from "../storage/stored-writing.js";
import { formatManifest } from "./manifest.js";
import { newId, type PendingPoint } from "./pending-point.js";
import { MANIFEST } from "./read-manifest.js";

interface StoredPointOptions
  extends Pick<PointOptions, "imagesAtOnce" | "digestsBeside" | "goOn" | "signal"> {
  /**
   * The id that it gets, which the domain must not have yet, or the domain's folder: then it is given by the
   * clock.
   */
  readonly id: string | StoredFolder;
}

/**
 * Like `makePoint`, in an object store: the files are uploaded while they are made, and the point exists when
 * its manifest does. If `work` ends without a commit, nothing is left.
 * @throws {BackupError} `E_LEASE_LOST`
 */
export async function makeStoredPoint<T>(
  writing: StoreWriting,
  work: (point: PendingPoint) => Promise<T>,
  { id: given, signal: stop, ...options }: StoredPointOptions,
): Promise<T> {
  const createdAt = new Date();
  const { id, clockWarning } =
    typeof given === "string" ? { id: given, clockWarning: undefined } : await newId(given, createdAt);
  const signal = anySignal(stop, writing.lost);
  const point = await writing.begin(id, { ...options, signal });
  let isPublished = false;
  try {
    return await work({
      id,
      createdAt,
      folder: undefined,
      at: (name) => point.at(name),
      keep: (make) => keepLocally(point, make),
      signal: writing.lost,
      clockWarning,
      commit: async (manifest) => {
        await writing.assertHeld();
        await point.publish(MANIFEST, "text" in manifest ? manifest.text : formatManifest(manifest));
        isPublished = true;
      },
    });
  } finally {
    // The next run clears away what can't be removed now.
    if (!isPublished) await point.discard().catch(() => undefined);
  }
}
