import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { CopiedFile } from "../../../src/backup/copy/copied-file.js";
import { fillFrom } from "../../../src/backup/image/fill-file.js";
import { ImageFile } from "../../../src/backup/image/image-file.js";
import type { RemoteFile } from "../../../src/backup/image/readable-file.js";
import { RateLimit } from "../../../src/backup/pull/rate-limit.js";

const MIB = 1024 * 1024;
/** Zeroes in between, and an end inside a piece. */
const CONTENT = Buffer.concat([
  Buffer.alloc(5 * MIB + 17, "some of the guest's data; "),
  Buffer.alloc(6 * MIB),
  Buffer.alloc(7 * MIB + 99, "more of it; "),
]);

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-copied-file-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

/** A file far away: each read takes a while, and any number of them can be under way. */
class FarFile implements RemoteFile {
  readonly path = "far/away";
  readonly asked: { readonly position: number; readonly length: number }[] = [];
  mostAtOnce = 0;
  content = CONTENT;
  #atOnce = 0;

  async open() {
    const read = async (target: Uint8Array, position: number): Promise<number> => {
      this.asked.push({ position, length: target.length });
      this.#atOnce += 1;
      this.mostAtOnce = Math.max(this.mostAtOnce, this.#atOnce);
      await sleep(5);
      this.#atOnce -= 1;
      return this.content.copy(target, 0, position);
    };
    const file = { path: this.path, read, size: async () => CONTENT.length, close: async () => undefined };
    return {
      ...file,
      fill: (target: Uint8Array, position: number, end: number) => fillFrom(file, target, position, end),
    };
  }
}

interface Copied {
  readonly far: FarFile;
  readonly copied: CopiedFile;
  readonly bytes: Buffer;
  readonly counted: number;
}

async function copy(
  name: string,
  options: { readonly left?: Buffer; readonly limit?: RateLimit } = {},
): Promise<Copied> {
  const far = new FarFile();
  const path = join(folder, name);
  let left: ImageFile | undefined;
  if (options.left) {
    left = await ImageFile.create(path);
    await left.write(options.left, 0);
  }
  let counted = 0;
  const copied = await CopiedFile.copy(far, () => ImageFile.create(path), {
    most: CONTENT.length,
    limit: options.limit,
    left,
    signal: new AbortController().signal,
    onBytes: (more) => {
      counted += more;
    },
  });
  return { far, copied, bytes: await readFile(path), counted };
}

it("has several requests to a file far away under way, and few of them", async () => {
  const { far, bytes, counted } = await copy("several");
  expect(bytes.equals(CONTENT)).toBe(true);
  expect(counted).toBe(CONTENT.length);
  expect(far.mostAtOnce).toBe(3);
  expect(far.asked).toHaveLength(Math.ceil(CONTENT.length / (4 * MIB)));
});

it.each([
  ["inside a block", 2 * MIB],
  ["inside a piece", 2 * MIB + 5],
  ["among the zeroes", 9 * MIB],
  ["at its end", CONTENT.length],
  ["behind its end", CONTENT.length + 3 * MIB],
])("goes on with what was left %s, and reads only the rest", async (name, bytes) => {
  const left = Buffer.concat([CONTENT, Buffer.alloc(4 * MIB, "behind it; ")]).subarray(0, bytes);
  const copied = await copy(name, { left });
  expect(copied.bytes.equals(CONTENT)).toBe(true);
  expect(copied.counted).toBe(CONTENT.length);
  const from = Math.min(...copied.far.asked.map(({ position }) => position));
  // Of a piece that was written in part nobody knows how much.
  const there = Math.min(bytes, CONTENT.length);
  expect(from).toBe(there - (there % MIB));
});

/** A file in a store that answers the first read, and no other: they end when their signal is aborted. */
const silent: RemoteFile = {
  path: "far/silent",
  open: async ({ signal } = {}) => {
    const read = async (target: Uint8Array, position: number): Promise<number> => {
      if (position > 0) await sleep(60_000, undefined, signal ? { signal } : {});
      return CONTENT.copy(target, 0, position);
    };
    const file = { path: "far/silent", read, size: async () => CONTENT.length, close: async () => undefined };
    return { ...file, fill: (target, position, end) => fillFrom(file, target, position, end) };
  },
};

it.each([undefined, new RateLimit(100 * MIB)])(
  "tells at once that nothing more can be written, while reads are not answered",
  async (limit) => {
    const full = async (): Promise<ImageFile> => {
      const to = await ImageFile.create(join(folder, `full-${limit === undefined}`));
      to.write = async () => {
        throw new Error("no space left");
      };
      return to;
    };
    const options = { most: CONTENT.length, limit, signal: new AbortController().signal };
    const copying = CopiedFile.copy(silent, full, { ...options, onBytes: () => undefined });
    await expect(copying).rejects.toThrow("no space left");
  },
);

it("keeps to a limited rate piece by piece", async () => {
  const begun = performance.now();
  const rate = 100 * MIB;
  const { far, bytes } = await copy("limited", { limit: new RateLimit(rate) });
  expect(bytes.equals(CONTENT)).toBe(true);
  expect(Math.max(...far.asked.map(({ length }) => length))).toBe(MIB);
  expect(performance.now() - begun).toBeGreaterThan((1000 * (CONTENT.length - 2 * MIB)) / rate - 100);
});

it("is read again by few requests, none of which asks for what was read just now", async () => {
  const { far, copied } = await copy("again");
  const file = await copied.open();
  far.asked.length = 0;
  const read = async (length: number, position: number): Promise<void> => {
    const target = Buffer.alloc(length);
    const expected = CONTENT.subarray(position, position + length);
    expect(await file.read(target, position)).toBe(expected.length);
    expect(target.subarray(0, expected.length).equals(expected)).toBe(true);
  };
  // Not at the bounds of pieces, as the clusters of an image.
  const at = 64 * 1024;
  await Promise.all([0, 1, 2, 3].map((i) => read(4 * MIB, at + 4 * i * MIB)));
  await read(4 * MIB, at + 16 * MIB);
  expect(far.asked).toEqual([
    { position: 0, length: 5 * MIB },
    ...[5, 9, 13].map((piece) => ({ position: piece * MIB, length: 4 * MIB })),
    { position: 17 * MIB, length: CONTENT.length - 17 * MIB },
  ]);
  await read(3 * MIB, CONTENT.length - 2 * MIB);
  await read(10, CONTENT.length + 1);
  expect(far.asked).toHaveLength(5);
  await file.close();
});

it.each([0, 4, 8])(
  "finds out that the original was changed meanwhile: piece %i of those read at once",
  async (piece) => {
    const { far, copied } = await copy(`changed-${piece}`);
    far.content = Buffer.from(CONTENT);
    far.content.fill("!", piece * MIB + 5, piece * MIB + 6);
    const file = await copied.open();
    const changed = { name: "DamageError", code: "E_CHANGED_MEANWHILE" };
    await expect(file.read(Buffer.alloc(9 * MIB), 0)).rejects.toMatchObject(changed);
    await file.close();
  },
);
