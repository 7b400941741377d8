import { isCryptographic } from "../digest/algorithms.js";
import type { Layer } from "./layer.js";

/** What it means that data was read through all layers of a chain without an error. */
export interface Assurance {
  /** Every layer has digests, so the data is what was stored unless somebody forged it. */
  readonly checked: boolean;
  /**
   * Every layer has cryptographic digests: the data is what the manifests and digest files of the chain
   * describe, whoever could write to the images. False if one layer has checksums (xxh64) or no digests.
   */
  readonly proven: boolean;
}

export function assuranceOf(layers: readonly Layer[]): Assurance {
  const algorithms = layers.map(({ disk }) => disk.digests?.algorithm);
  return {
    checked: !algorithms.includes(undefined),
    proven: algorithms.every((algorithm) => algorithm !== undefined && isCryptographic(algorithm)),
  };
}
