import { BackupError } from "../base/errors.js";
import type { DigestThreads } from "../digest/digest-threads.js";
import type { NewFiles } from "../host/new-files.js";
import type { ClusterRun, ResumableWriter } from "../image/image.js";
import { createImage, type NewImage, reopenImage } from "./create-image.js";
import { DirectLanding } from "./direct-landing.js";
import type { ImageJournal } from "./image-journal.js";
import { ImageLedger, type LedgerDigests } from "./image-ledger.js";
import type { Begun, DigestTarget, FinishedStore, ImageStore } from "./image-store.js";
import type { LeftJournal } from "./left-journal.js";
import type { Segment } from "./segment.js";

interface PlainStoreOptions extends NewImage {
  readonly path: string;
  /** True if the image covers the whole disk; false if it has only what changed. */
  readonly complete: boolean;
  readonly digests?: DigestTarget | undefined;
  /** Undefined: none is kept. It needs digests. */
  readonly journal?: ImageJournal | undefined;
}

/** An image whose clusters are stored without compression, when they arrive. */
export class PlainStore implements ImageStore {
  readonly #writer: ResumableWriter;
  readonly #ledger: ImageLedger;
  readonly #digests: LedgerDigests | undefined;
  /** Threads for this image alone; undefined if the caller's are used. */
  readonly #ownThreads: DigestThreads | undefined;
  readonly #journal: ImageJournal | undefined;

  private constructor(
    writer: ResumableWriter,
    { complete, journal }: Pick<PlainStoreOptions, "complete" | "journal">,
    digests?: LedgerDigests,
    ownThreads?: DigestThreads,
  ) {
    this.#writer = writer;
    this.#journal = journal;
    journal?.follow(writer);
    this.#ledger = new ImageLedger({ writer, complete, digests, journal });
    this.#digests = digests;
    this.#ownThreads = ownThreads;
  }

  /**
   * Creates the files, which must not exist.
   * @param files becomes the owner of the files
   * @throws {UsageError} the geometry is beyond what the format can hold
   * @throws the file system's error, with `code`
   */
  static async create(options: PlainStoreOptions, files: NewFiles): Promise<PlainStore> {
    const { path, mapPath } = options;
    const writer = files.add(path, await createImage(path, options));
    if (mapPath !== undefined) files.expect(mapPath);
    return await PlainStore.#of(writer, options, files);
  }

  /**
   * Continues the image that a killed run left, as far as it is there. No other file of it may be left.
   * @throws {DamageError} the image is no regular file, or has other names too
   * @throws the file system's error, with `code`
   */
  static async resume(
    options: PlainStoreOptions,
    files: NewFiles,
    left: LeftJournal,
  ): Promise<{ readonly store: PlainStore; readonly from: Begun }> {
    const { path, mapPath } = options;
    const writer = files.add(path, await reopenImage(path, options));
    if (mapPath !== undefined) files.expect(mapPath);
    const store = await PlainStore.#of(writer, options, files);
    const bytes = await writer.size();
    let cluster = 0;
    const journal = await left.replay(async (entry) => {
      const isKept = await store.#ledger.keep(entry, bytes);
      if (isKept) cluster = entry.position;
      return isKept;
    });
    options.journal?.continue(journal);
    return { store, from: { cluster, rank: await writer.cutBehind(cluster) } };
  }

  static async #of(
    writer: ResumableWriter,
    options: PlainStoreOptions,
    files: NewFiles,
  ): Promise<PlainStore> {
    const { path, geometry, complete, digests } = options;
    if (digests === undefined) return new PlainStore(writer, options);
    const { algorithm } = digests;
    const { DigestBehind, DigestFileWriter, DigestThreads } = await loadDigests();
    const header = { algorithm, geometry, complete };
    const file = files.add(digests.path, await DigestFileWriter.create(digests.path, header));
    const ownThreads = digests.threads ? undefined : new DigestThreads(algorithm);
    const behind = new DigestBehind(path, digests.threads ?? (ownThreads as DigestThreads));
    return new PlainStore(writer, options, { algorithm, file, behind }, ownThreads);
  }

  get dataBytes(): number {
    return this.#ledger.dataBytes;
  }

  landing(segment: Segment): DirectLanding {
    return new DirectLanding(segment, this.#writer);
  }

  capacity(): Promise<void> {
    return this.#ledger.capacity();
  }

  record(runs: readonly ClusterRun[]): void {
    this.#ledger.record(runs);
  }

  complete(): Promise<void> {
    return this.#ledger.complete();
  }

  async finish(options: { readonly sync: boolean }): Promise<FinishedStore> {
    await this.#journal?.complete();
    const { storedBytes } = await this.#writer.finish(options);
    this.#journal?.assertWhole();
    const digestsSha256 = (await this.#digests?.file.finish(options))?.sha256;
    return { storedBytes, digestsSha256 };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#digests?.behind.close(new BackupError("E_DIGEST_THREAD", "the image was closed"));
    await this.#ownThreads?.close();
  }
}

/** Not loaded with this file: a pull without digests starts sooner without cryptography and threads. */
export async function loadDigests() {
  const [behind, file, threads] = await Promise.all([
    import("../digest/digest-behind.js"),
    import("../digest/digest-file-writer.js"),
    import("../digest/digest-threads.js"),
  ]);
  return { ...behind, ...file, ...threads };
}
