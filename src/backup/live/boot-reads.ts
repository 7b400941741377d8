/**
 * What a guest reads while it boots: noted beside its point, and fetched before it is asked for when the next
 * one starts. That is for points in object stores, where each read takes as long as an answer does.
 */
import {
  findBootReads,
  MOST_BOOT_BYTES,
  MOST_BOOT_STRETCHES,
  type NotedReads,
  recordBootReads,
} from "../repository/boot-record.js";
import type { Repository } from "../repository/repository.js";
import type { PointServer } from "../serve/serve.js";

/** What is read later than this after the first read is no part of the boot. */
const BOOT_MS = 120_000;
/** Whatever is read of such a part counts as all of it. */
const UNIT_BYTES = 64 * 1024;

interface Place {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly point: string;
}

export class BootReads {
  readonly #disks = new Map<string, { offset: number; length: number }[]>();
  readonly #seen = new Set<string>();
  #stretches = 0;
  #end = Number.POSITIVE_INFINITY;

  /** Something is read. Too late, or too much, is left out. */
  note(disk: string, offset: number, length: number): void {
    const now = performance.now();
    if (this.#seen.size === 0) this.#end = now + BOOT_MS;
    if (now > this.#end) return;
    const last = Math.floor((offset + length - 1) / UNIT_BYTES);
    for (let unit = Math.floor(offset / UNIT_BYTES); unit <= last; unit += 1) this.#noteUnit(disk, unit);
  }

  #noteUnit(disk: string, unit: number): void {
    const key = `${disk}:${unit}`;
    if (this.#seen.has(key)) return;
    const reads = this.#disks.get(disk) ?? [];
    this.#disks.set(disk, reads);
    const before = reads.at(-1);
    const isNext = before !== undefined && before.offset + before.length === unit * UNIT_BYTES;
    const isFull = !isNext && this.#stretches === MOST_BOOT_STRETCHES;
    if (isFull || (this.#seen.size + 1) * UNIT_BYTES > MOST_BOOT_BYTES) {
      this.stop();
      return;
    }
    this.#seen.add(key);
    if (isNext) before.length += UNIT_BYTES;
    else {
      reads.push({ offset: unit * UNIT_BYTES, length: UNIT_BYTES });
      this.#stretches += 1;
    }
  }

  /** What is read from here on is not by the guest. */
  stop(): void {
    this.#end = Number.NEGATIVE_INFINITY;
  }

  /**
   * Without these notes the next guest boots more slowly, and that is all: it never rejects.
   * @param place.isWhole the guest has come up; otherwise an older note is worth more
   */
  async record({ repository, domain, point, isWhole }: Place & { readonly isWhole: boolean }): Promise<void> {
    this.stop();
    if (!repository.isInStore || this.#seen.size === 0) return;
    const disks = [...this.#disks].map(([disk, reads]) => ({ disk, reads }));
    try {
      await using folder = await repository.holdRecords(domain, point);
      await recordBootReads(folder, disks, { replaces: isWhole });
    } catch {
      // These credentials may only read, or the point is gone.
    }
  }
}

/**
 * Fetches what a guest has read before while it booted, from this point or another one of its machine. Settles
 * when all of it has come, and never rejects: without it, a guest only waits longer for what it reads.
 */
export async function fetchBoot(
  { repository, domain }: Omit<Place, "point">,
  server: PointServer,
): Promise<void> {
  if (!repository.isInStore) return;
  let reads: readonly NotedReads[] | undefined;
  try {
    reads = await findBootReads(repository, domain, server.point.id);
  } catch {
    return;
  }
  if (reads) await server.fetchAhead(reads, MOST_BOOT_BYTES);
}
