import { BackupError } from "../base/errors.js";
import type { FilePlace } from "../image/readable-file.js";
import {
  decodeL1Entry,
  decodeL2Entry,
  decodeRefcount,
  decodeRefcountTableEntry,
  ENTRY_BYTES,
  type L2Entry,
  REFCOUNT_BYTES,
  REFCOUNT_ORDER,
} from "./format.js";
import { INCOMPATIBLE } from "./header.js";
import { Qcow2File } from "./open.js";
import { ClusterUses } from "./refcounts.js";

export interface Qcow2Finding {
  /** A leak only wastes space; damage means that data is lost or will be. */
  readonly severity: "damage" | "leak";
  readonly message: string;
  /**
   * In bytes. Both this and the length are left out if the finding concerns no particular place of the disk.
   */
  readonly guestOffset?: number;
  readonly length?: number;
}

/** A part of the disk, in bytes. */
interface TableLocation {
  readonly guestOffset: number;
  readonly length: number;
}

interface CheckOptions {
  readonly signal?: AbortSignal | undefined;
}

/** A broken table causes thousands of findings, and the first ones say enough. */
const MAX_FINDINGS = 1000;
/** Most refcounts that are listed to be mended. An image with more is no longer ours. */
const MAX_WRONG = 1_000_000;
const MOST_REFCOUNT = 0xffff;
/** The L1 table is read in pieces. */
const L1_PIECE_BYTES = 64 * 1024;

/**
 * Checks the structure of a qcow2 image, as `qemu-img check` does: every entry of every table is valid, no
 * cluster has two uses, refcounts and COPIED flags agree with the tables. Contents are not checked.
 *
 * Backups have neither internal snapshots nor stored bitmaps, so their presence counts as damage. Their
 * references aren't followed, so refcounts are then not compared. Memory: two bytes for each cluster in use.
 *
 * @throws the file system's error; everything wrong with the image is a finding
 */
export async function checkQcow2(place: FilePlace, options: CheckOptions = {}): Promise<Qcow2Finding[]> {
  let file: Qcow2File;
  try {
    file = await Qcow2File.open(place);
  } catch (error) {
    if (!isOfImage(error)) throw error;
    return [{ severity: "damage", message: error.message }];
  }
  try {
    return await new Check(file, options.signal).run();
  } finally {
    await file.close();
  }
}

/** What can be mended in an image whose tables are sound. */
interface WrongRefcounts {
  /** Whether anything else is damaged; then the references that were counted may be wrong. */
  readonly isDamaged: boolean;
  readonly entries: readonly WrongEntry[];
}

interface WrongEntry {
  /** Where in the file it is, in bytes. */
  readonly position: number;
  /**
   * In bytes: two of a refcount; eight of an entry of the refcount table that names no block. No cluster that
   * it is for is in use, so it has to be zero.
   */
  readonly length: 2 | 8;
  /** The refcount that it should have. */
  readonly refcount: number;
}

/**
 * The refcounts of an image that differ from the references to its clusters: leaks, refcounts that are too
 * low, and entries of the refcount table that have to be zero.
 * @throws the file system's error
 */
export async function findWrongRefcounts(
  place: FilePlace,
  options: CheckOptions = {},
): Promise<WrongRefcounts> {
  let file: Qcow2File;
  try {
    file = await Qcow2File.open(place);
  } catch (error) {
    if (!isOfImage(error)) throw error;
    return { isDamaged: true, entries: [] };
  }
  try {
    const check = new Check(file, options.signal);
    await check.run();
    return { isDamaged: check.isDamaged, entries: check.wrong };
  } finally {
    await file.close();
  }
}

/** Errors with our own codes concern the image, those with the system's codes the file system. */
function isOfImage(error: unknown): error is BackupError {
  return error instanceof BackupError && error.code.startsWith("E_");
}

class Check {
  readonly #findings: Qcow2Finding[] = [];
  /** The worst severity among the findings that are not listed. */
  #omitted: Qcow2Finding["severity"] | undefined;
  readonly #file: Qcow2File;
  readonly #signal: AbortSignal | undefined;
  readonly #uses = new ClusterUses();
  /** Whether anything but a refcount is damaged. */
  isDamaged = false;
  /** The refcounts that differ from the references. */
  readonly wrong: WrongEntry[] = [];

  constructor(file: Qcow2File, signal: AbortSignal | undefined) {
    this.#file = file;
    this.#signal = signal;
  }

  async run(): Promise<Qcow2Finding[]> {
    const { header } = this.#file;
    const { clusterSize } = header;
    if ((header.incompatible & INCOMPATIBLE.DIRTY) !== 0)
      this.#damage("the image was not closed (dirty bit)");
    this.#claim(0, clusterSize, "the header");
    this.#claim(header.l1Offset, header.l1Entries * ENTRY_BYTES, "the L1 table");
    const refcountBytes = header.refcountTableClusters * clusterSize;
    this.#claim(header.refcountTableOffset, refcountBytes, "the refcount table");

    await this.#walkL1();
    const blocks = await this.#refcountBlocks();
    const extras = [header.snapshots > 0 && "internal snapshots", header.hasBitmaps && "stored bitmaps"];
    const found = extras.filter((extra) => extra !== false);
    if (found.length > 0) this.#damage(`the image has ${found.join(" and ")}, which no backup has`);
    else await this.#compareRefcounts(blocks);

    if (this.#omitted === undefined) return this.#findings;
    return [...this.#findings, { severity: this.#omitted, message: "and more, which are not listed" }];
  }

  async #walkL1(): Promise<void> {
    const { l1Offset, l1Entries } = this.#file.header;
    const perPiece = L1_PIECE_BYTES / ENTRY_BYTES;
    for (let first = 0; first < l1Entries; first += perPiece) {
      const count = Math.min(perPiece, l1Entries - first);
      const piece = await this.#file.readTable(l1Offset + first * ENTRY_BYTES, count * ENTRY_BYTES);
      for (let i = 0; i < count; i += 1) {
        const entry = decodeL1Entry(piece, i, this.#file.context);
        const length = this.#file.l2Entries * this.#file.header.clusterSize;
        const place: TableLocation = { guestOffset: (first + i) * length, length };
        if (entry.kind === "invalid") this.#damage(`the L1 entry ${entry.problem}`, place);
        if (entry.kind !== "table") continue;
        if (!entry.copied) this.#damage("the L1 entry is not marked as copied", place);
        // A table that two entries point to is walked once, so that the walk ends.
        if (this.#claimCluster(entry.hostOffset, "an L2 table", place, entry.copied)) {
          await this.#walkL2(entry.hostOffset, place.guestOffset);
        }
      }
    }
  }

  async #walkL2(offset: number, firstGuestOffset: number): Promise<void> {
    this.#signal?.throwIfAborted();
    const { clusterSize } = this.#file.header;
    const table = await this.#file.readTable(offset, clusterSize);
    for (let i = 0; i < this.#file.l2Entries; i += 1) {
      const place: TableLocation = { guestOffset: firstGuestOffset + i * clusterSize, length: clusterSize };
      this.#lookAt(decodeL2Entry(table, i, this.#file.context), place);
    }
  }

  #lookAt(entry: L2Entry, place: TableLocation): void {
    const { clusterSize } = this.#file.header;
    switch (entry.kind) {
      case "standard":
        if (entry.hostOffset === 0) return;
        if (!entry.copied) this.#damage("the L2 entry is not marked as copied", place);
        this.#claimCluster(entry.hostOffset, "data", place, entry.copied);
        return;
      case "compressed": {
        const first = Math.floor(entry.hostOffset / clusterSize);
        const last = Math.floor((entry.hostOffset + entry.length - 1) / clusterSize);
        for (let cluster = first; cluster <= last; cluster += 1) {
          if (!this.#uses.share(cluster)) this.#overlap(cluster * clusterSize, "compressed data", place);
        }
        return;
      }
      case "invalid":
        this.#damage(`the L2 entry ${entry.problem}`, place);
        return;
      default:
        entry satisfies never;
    }
  }

  /** Offsets of the refcount blocks by number; 0 if there is none, or its entry is invalid or overlaps. */
  async #refcountBlocks(): Promise<Float64Array> {
    const { refcountTableOffset, refcountTableClusters, clusterSize } = this.#file.header;
    const table = await this.#file.readTable(refcountTableOffset, refcountTableClusters * clusterSize);
    const blocks = new Float64Array(table.length / ENTRY_BYTES);
    for (let index = 0; index < blocks.length; index += 1) {
      const entry = decodeRefcountTableEntry(table, index, this.#file.context);
      if (entry.kind === "none") continue;
      const isNeeded = index * this.#refcountsInBlock < this.#file.context.fileEnd / clusterSize;
      const isTaken = entry.kind === "table" && this.#uses.of(entry.hostOffset / clusterSize) > 0;
      if (!isNeeded && (entry.kind === "invalid" || isTaken)) {
        // What else uses the cluster has it alone: the entry is wrong, whatever it says.
        if (this.wrong.length >= MAX_WRONG) this.isDamaged = true;
        else this.wrong.push({ position: refcountTableOffset + index * ENTRY_BYTES, length: 8, refcount: 0 });
        const problem =
          entry.kind === "invalid"
            ? entry.problem
            : `points to byte ${entry.hostOffset} of the file, which is in use for something else`;
        this.#note({ severity: "damage", message: `entry ${index} of the refcount table ${problem}` });
      } else if (entry.kind === "invalid") {
        this.#damage(`entry ${index} of the refcount table ${entry.problem}`);
      } else if (this.#claimCluster(entry.hostOffset, "a refcount block")) {
        blocks[index] = entry.hostOffset;
      }
    }
    return blocks;
  }

  get #refcountsInBlock(): number {
    const { clusterSize, refcountOrder } = this.#file.header;
    return (clusterSize * 8) / 2 ** refcountOrder;
  }

  async #compareRefcounts(blocks: Float64Array): Promise<void> {
    const { clusterSize, refcountOrder } = this.#file.header;
    const perBlock = this.#refcountsInBlock;
    const clusters = this.#file.context.fileEnd / clusterSize;
    const stretch = new Stretch((finding) => this.#note(finding));
    for (const [index, offset] of blocks.entries()) {
      if (offset === 0) continue;
      this.#signal?.throwIfAborted();
      const block = await this.#file.readTable(offset, clusterSize);
      // Refcounts for clusters behind the end of the file mean nothing.
      const count = Math.min(perBlock, clusters - index * perBlock);
      for (let i = 0; i < count; i += 1) {
        const cluster = index * perBlock + i;
        const refcount = decodeRefcount(block, i, refcountOrder);
        stretch.add(cluster, refcount, this.#uses);
        if (refcount !== this.#uses.of(cluster)) {
          this.#wrongRefcount(offset + i * REFCOUNT_BYTES, cluster);
        }
      }
    }
    for (const cluster of this.#uses.used()) {
      if ((blocks[Math.floor(cluster / perBlock)] ?? 0) !== 0) continue;
      stretch.add(cluster, 0, this.#uses);
      this.isDamaged = true;
    }
    stretch.end();
  }

  #claim(offset: number, length: number, what: string): void {
    const { clusterSize } = this.#file.header;
    for (let done = 0; done < length; done += clusterSize) this.#claimCluster(offset + done, what);
  }

  /** @param copied whether the entry says that the cluster has no other use */
  #claimCluster(offset: number, what: string, place?: TableLocation, copied = false): boolean {
    const free = this.#uses.claim(offset / this.#file.header.clusterSize, copied);
    if (!free) this.#overlap(offset, what, place);
    return free;
  }

  #overlap(offset: number, what: string, place: TableLocation | undefined): void {
    this.#damage(`the cluster at byte ${offset} of the file, ${what}, is in use for something else`, place);
  }

  #wrongRefcount(position: number, cluster: number): void {
    const refcount = this.#uses.of(cluster);
    const isListed = this.#file.header.refcountOrder === REFCOUNT_ORDER && this.wrong.length < MAX_WRONG;
    if (isListed && refcount <= MOST_REFCOUNT) this.wrong.push({ position, length: 2, refcount });
    else this.isDamaged = true;
  }

  #damage(message: string, place?: TableLocation): void {
    this.isDamaged = true;
    this.#note({ severity: "damage", message, ...place });
  }

  #note(finding: Qcow2Finding): void {
    if (this.#findings.length < MAX_FINDINGS) this.#findings.push(finding);
    else if (this.#omitted !== "damage") this.#omitted = finding.severity;
  }
}

/** Reports neighbouring clusters with the same wrong refcount as one finding. */
class Stretch {
  readonly #tell: (finding: Qcow2Finding) => void;
  #first = 0;
  #end = 0;
  #refcount = 0;
  #uses = 0;
  #severity: Qcow2Finding["severity"] = "leak";

  constructor(tell: (finding: Qcow2Finding) => void) {
    this.#tell = tell;
  }

  add(cluster: number, refcount: number, all: ClusterUses): void {
    const uses = all.of(cluster);
    if (refcount === uses) return;
    // If an entry says "refcount 1", a higher refcount is more than a leak: QEMU may rely on either.
    const severity = refcount < uses || all.isCopied(cluster) ? "damage" : "leak";
    const goesOn = refcount === this.#refcount && uses === this.#uses && severity === this.#severity;
    if (cluster !== this.#end || !goesOn) {
      this.end();
      this.#first = cluster;
      this.#refcount = refcount;
      this.#uses = uses;
      this.#severity = severity;
    }
    this.#end = cluster + 1;
  }

  end(): void {
    if (this.#end === this.#first) return;
    const one = this.#end - this.#first === 1;
    const which = one
      ? `cluster ${this.#first} of the file`
      : `clusters ${this.#first} to ${this.#end - 1} of the file`;
    this.#tell({
      severity: this.#severity,
      message: `${which}: the refcount is ${this.#refcount}, the references are ${this.#uses}`,
    });
    this.#first = this.#end;
  }
}
