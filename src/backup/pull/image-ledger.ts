import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "../digest/digest.js";
import type { DigestBehind } from "../digest/digest-behind.js";
import type { DigestFileWriter } from "../digest/digest-file-writer.js";
import { type ClusterRun, dataBytesOf, type Geometry, type ImageWriter, slotsOf } from "../image/image.js";
import type { Recorder } from "./lanes.js";

interface LedgerOptions {
  readonly writer: ImageWriter;
  /** Nothing lies below the image, so zeroes need not be said: what is not stored reads as zeroes. */
  readonly complete: boolean;
  /** Left out where no digests are wanted. */
  readonly digests?: LedgerDigests | undefined;
}

export interface LedgerDigests {
  readonly algorithm: DigestAlgorithm;
  readonly behind: DigestBehind;
  readonly file: DigestFileWriter;
}

/**
 * Notes what was stored, in guest order: in the image's tables, and with its digests in the digest file. The digests
 * come later than the data, since others make them.
 */
export class ImageLedger implements Recorder<readonly ClusterRun[]> {
  readonly #options: LedgerOptions;
  #tail: Promise<void> = Promise.resolve();
  #failure: { readonly reason: unknown } | undefined;
  #dataBytes = 0;

  constructor(options: LedgerOptions) {
    this.#options = options;
  }

  /** Bytes of the guest that are stored. */
  get dataBytes(): number {
    return this.#dataBytes;
  }

  /** Takes the runs that follow in the guest. */
  record(runs: readonly ClusterRun[]): void {
    const { writer, complete, digests } = this.#options;
    for (const run of runs) this.#dataBytes += dataBytesOf(run, writer.geometry);
    const worth = complete ? runs.filter((run) => run.kind !== "zero") : runs;
    if (digests === undefined) {
      for (const run of worth) writer.addRun(run);
      return;
    }
    // The digests are made of what can be read, to the end of the last cluster.
    writer.reach(hostEndOf(worth, writer.geometry));
    const digested = digests.behind.digest(worth, writer.geometry);
    this.#tail = Promise.all([digested, this.#tail]).then(([bytes]) => this.#enter(worth, bytes, digests));
    this.#tail.catch((reason: unknown) => {
      this.#failure ??= { reason };
    });
  }

  /**
   * Resolves when more may be noted.
   * @throws {BackupError} the digests can't be made, or the tables can't hold what was noted
   */
  async capacity(): Promise<void> {
    await this.#options.digests?.behind.capacity();
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  /** Everything noted so far is where it belongs. */
  async complete(): Promise<void> {
    await this.#tail;
  }

  #enter(runs: readonly ClusterRun[], bytes: Buffer, { algorithm, file }: LedgerDigests): void {
    const { bytes: size } = DIGEST_ALGORITHMS[algorithm];
    let at = 0;
    for (const run of runs) {
      this.#options.writer.addRun(run);
      const length = slotsOf(run) * size;
      file.add(run, bytes.subarray(at, at + length));
      at += length;
    }
  }
}

/** Where the highest of the runs' stored bytes ends in the file, cut off at the end of the disk. */
function hostEndOf(runs: readonly ClusterRun[], { clusterSize, virtualSize }: Geometry): number {
  const last = runs.findLast((run) => slotsOf(run) > 0);
  if (last === undefined || last.kind === "zero") return 0;
  const length = Math.min(last.count * clusterSize, virtualSize - last.cluster * clusterSize);
  return last.hostOffset + length;
}
