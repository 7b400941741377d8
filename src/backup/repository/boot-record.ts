/**
 * What a guest read first when it was started from a point, noted beside the point: the next one that is
 * started from an object store has it fetched before it asks. It is a hint, and never believed: only what the
 * point's digests prove is shown to a guest.
 */
import { z } from "zod";
import { parseJson } from "../base/json.js";
import type { RecordFolder } from "../storage/record-folder.js";
import { replaceRecord } from "./replace-record.js";
import type { Repository } from "./repository.js";

/** No file that a manifest names can be called so. */
const BOOT_RECORD = ".boot-reads.json";
/** Longer than any record that is written. */
const MOST_BYTES = 512 * 1024;
/** Stretches of one record, over all disks; and their bytes. */
export const MOST_BOOT_STRETCHES = 2048;
export const MOST_BOOT_BYTES = 128 * 1024 * 1024;
const MOST_DISKS = 256;
/** Points that are looked at for one. */
const MOST_POINTS = 100;

/** `OFFSET+LENGTH` */
const STRETCH = /^(\d{1,15})\+(\d{1,9})$/;
const record = z.object({
  format: z.literal("nbdpull-boot-reads"),
  version: z.literal(1),
  disks: z
    .array(z.object({ disk: z.string(), reads: z.array(z.string().regex(STRETCH)).max(MOST_BOOT_STRETCHES) }))
    .max(MOST_DISKS),
});

/** In bytes of the guest's disk. */
export interface Stretch {
  readonly offset: number;
  readonly length: number;
}

/** What was read of a disk, in the order in which it was. */
export interface NotedReads {
  readonly disk: string;
  readonly reads: readonly Stretch[];
}

/**
 * What is noted beside a point or, if nothing is, beside the newest other one of the domain: a machine starts
 * from the same places as the day before. Whoever can write to the repository can forge it: nothing in it
 * need be inside a disk.
 * @returns undefined if there is none that can be used; never more than the bounds above
 * @throws the file system's or the store's error
 */
export async function findBootReads(
  repository: Repository,
  domain: string,
  point: string,
): Promise<readonly NotedReads[] | undefined> {
  const others = (await repository.pointIds(domain)).filter((id) => id !== point).reverse();
  for (const id of [point, ...others].slice(0, MOST_POINTS)) {
    await using folder = await repository.openPoint(domain, id);
    if (!(await folder.names()).includes(BOOT_RECORD)) continue;
    const found = parse((await folder.read(BOOT_RECORD, MOST_BYTES)).toString("utf8"));
    if (found) return found;
  }
  return undefined;
}

/**
 * @param folder of the point
 * @param disks no more than the bounds above
 * @param options.replaces otherwise a note that is there stays
 * @throws the file system's or the store's error
 */
export async function recordBootReads(
  folder: RecordFolder,
  disks: readonly NotedReads[],
  { replaces }: { readonly replaces: boolean },
): Promise<void> {
  if (!replaces && (await folder.names()).includes(BOOT_RECORD)) return;
  const lines = disks.map(({ disk, reads }) => ({
    disk,
    reads: reads.map(({ offset, length }) => `${offset}+${length}`),
  }));
  const content: z.infer<typeof record> = { format: "nbdpull-boot-reads", version: 1, disks: lines };
  await replaceRecord(folder, BOOT_RECORD, content);
  await folder.sync();
}

function parse(text: string): NotedReads[] | undefined {
  const { data } = record.safeParse(parseJson(text));
  if (!data) return undefined;
  let [stretches, bytes] = [0, 0];
  return data.disks.map(({ disk, reads }) => {
    const kept: Stretch[] = [];
    for (const read of reads) {
      const [offset = 0, length = 0] = read.split("+").map(Number);
      stretches += 1;
      bytes += length;
      if (stretches > MOST_BOOT_STRETCHES || bytes > MOST_BOOT_BYTES) break;
      kept.push({ offset, length });
    }
    return { disk, reads: kept };
  });
}
