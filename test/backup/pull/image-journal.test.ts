import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { ImageJournal } from "../../../src/backup/pull/image-journal.js";
import type { JournalEntry } from "../../../src/backup/pull/journal-entry.js";
import { JournalFile } from "../../../src/backup/pull/journal-file.js";
import { scratch } from "../image/support.js";

/** Enough for a flush at once. */
const MANY_BYTES = 16 * 1024 * 1024;
const entry = (position: number): JournalEntry => ({
  runs: [],
  digests: Buffer.alloc(0),
  position,
  sizes: [],
});

/** A journal whose image takes 20 ms to settle, and tells how often it has begun and ended to. */
async function journalOf(settled: (times: number) => void) {
  const path = (await scratch())("journal");
  const image = { begun: 0, ended: 0 };
  const create = () => JournalFile.create(path, Buffer.alloc(32, 7), {});
  const journal = new ImageJournal({ create, sync: true });
  journal.follow({
    settle: async () => {
      image.begun += 1;
      await sleep(20);
      image.ended += 1;
      settled(image.ended);
    },
  });
  return { journal, image };
}

it("a journal flushes nothing any more when its image is complete", async () => {
  const { journal, image } = await journalOf(() => undefined);
  await using _ = journal;
  for (const position of [1, 2, 3]) journal.add(entry(position), MANY_BYTES);
  await journal.complete();
  expect(image.begun).toBeGreaterThan(1);
  expect(image.ended).toBe(image.begun);
  const { begun } = image;
  await sleep(40);
  expect(image.begun).toBe(begun);
});

it("an image is not complete when the flush fails that was waiting for the one before it", async () => {
  const { journal } = await journalOf((times) => {
    // Linux tells it once: the next flush of the file would succeed.
    if (times === 2) throw Object.assign(new Error("EIO: i/o error, fdatasync"), { code: "EIO" });
  });
  await using _ = journal;
  for (const position of [1, 2, 3]) journal.add(entry(position), MANY_BYTES);
  await expect(journal.complete()).rejects.toMatchObject({ code: "EIO" });
});
