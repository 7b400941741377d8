import { DIGEST_ALGORITHMS, type DigestAlgorithm } from "../digest/algorithms.js";
import type { DigestBehind } from "../digest/digest-behind.js";
import type { DigestFileWriter } from "../digest/digest-file-writer.js";
import { type ClusterRun, dataBytesOf, type Geometry, type ImageWriter, slotsOf } from "../image/image.js";
import type { ImageJournal } from "./image-journal.js";
import { endOfRuns, type JournalEntry, type JournaledRun } from "./journal-entry.js";
import type { Recorder } from "./lanes.js";

interface LedgerOptions {
  readonly writer: ImageWriter;
  /** True if no image lies below. What is not stored then reads as zeroes, so zero runs are left out. */
  readonly complete: boolean;
  /** Undefined: no digests are computed. */
  readonly digests?: LedgerDigests | undefined;
  /** Undefined: no journal is kept. It needs digests. */
  readonly journal?: ImageJournal | undefined;
}

export interface LedgerDigests {
  readonly algorithm: DigestAlgorithm;
  readonly behind: DigestBehind;
  readonly file: DigestFileWriter;
}

/**
 * Records in guest order what was stored: in the image's tables, and with its digests in the digest file. The
 * digests come later than the data, because other threads compute them.
 */
export class ImageLedger implements Recorder<readonly ClusterRun[]> {
  readonly #options: LedgerOptions;
  #tail: Promise<void> = Promise.resolve();
  #failure: { readonly reason: unknown } | undefined;
  #dataBytes = 0;

  constructor(options: LedgerOptions) {
    this.#options = options;
  }

  /** Guest bytes that are stored. */
  get dataBytes(): number {
    return this.#dataBytes;
  }

  /** Takes the next runs in guest order. */
  record(runs: readonly ClusterRun[]): void {
    const { writer, complete, digests, journal } = this.#options;
    const storedBytes = runs.reduce((sum, run) => sum + dataBytesOf(run, writer.geometry), 0);
    this.#dataBytes += storedBytes;
    const listed = complete ? runs.filter((run) => run.kind !== "zero") : runs;
    if (digests === undefined) {
      for (const run of listed) writer.addRun(run);
      return;
    }
    // The threads that compute the digests read the file up to the end of the last cluster.
    writer.reach(hostEndOf(listed, writer.geometry));
    const digested = digests.behind.digest(listed, writer.geometry);
    const position = endOfRuns(runs);
    this.#tail = Promise.all([digested, this.#tail]).then(([bytes]) => {
      this.#enter(listed, bytes, digests);
      journal?.add({ runs: listed.map(placed), digests: bytes, position, sizes: [] }, storedBytes);
    });
    this.#tail.catch((reason: unknown) => {
      this.#failure ??= { reason };
    });
  }

  /**
   * Resolves when more may be recorded.
   * @throws {BackupError} the digests can't be computed, or the tables can't hold the runs
   */
  async capacity(): Promise<void> {
    await this.#options.digests?.behind.capacity();
    if (this.#failure !== undefined) throw this.#failure.reason;
    this.#options.journal?.assertWhole();
  }

  /**
   * Enters what an earlier run has stored, if the file has it still: it is read back and compared with its
   * digests.
   * @param fileBytes length of the file
   */
  async keep({ runs, digests: noted }: JournalEntry, fileBytes: number): Promise<boolean> {
    const { writer, digests } = this.#options;
    const stored = runs as readonly ClusterRun[];
    if (digests === undefined || hostEndOf(stored, writer.geometry) > fileBytes) return false;
    const found = await digests.behind.digest(stored, writer.geometry);
    if (!found.equals(noted)) return false;
    for (const run of stored) this.#dataBytes += dataBytesOf(run, writer.geometry);
    this.#enter(stored, noted, digests);
    return true;
  }

  /** Resolves when all recorded runs are in the tables and the digest file. */
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

/** The host offset at which the last stored run ends, cut off at the end of the disk; 0 if none is stored. */
function hostEndOf(runs: readonly ClusterRun[], { clusterSize, virtualSize }: Geometry): number {
  const last = runs.findLast((run) => slotsOf(run) > 0);
  if (last === undefined || last.kind === "zero") return 0;
  const length = Math.min(last.count * clusterSize, virtualSize - last.cluster * clusterSize);
  return last.hostOffset + length;
}

/** A run as a journal has it. */
function placed(run: ClusterRun): JournaledRun {
  return run.kind === "zero" ? { ...run, hostOffset: 0 } : run;
}
