import { createCipheriv } from "node:crypto";
import { copyFileSync, cpSync, existsSync, mkdirSync, statSync } from "node:fs";
import { link, mkdtemp, open, readFile, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openExport } from "../../../src/backup/export/open-export.js";
import { type CopyImageOptions, type PullResult, pullImage } from "../../../src/backup/pull/pull-image.js";
import { MemoryDisk, NbdServer, parseNbdUri } from "../../../src/nbd/index.js";
import { flipByte } from "../../support/flip-byte.js";
import { assertSound, guestBytes, scratch } from "../image/support.js";

const KiB = 1024;
const MiB = 1024 * KiB;
/** Four flushes of the image; two of them are before two thirds of it. */
const SIZE = 64 * MiB + 7 * 512;
const KEY = Buffer.alloc(32, 7);
const BITMAP = "since";

interface KillSettings {
  readonly bitmap?: string;
  /** The image is copied long before the journal, as if its data had not reached the disk. */
  readonly imageFirst?: boolean;
}

interface Killed {
  readonly left: string;
  readonly folder: string;
  readonly undisturbed: PullResult;
}

type Manner = Pick<CopyImageOptions, "format" | "compress">;
const MANNERS = {
  qcow2: { format: "qcow2" },
  "compressed qcow2": { format: "qcow2", compress: { method: "deflate" } },
  raw: { format: "raw" },
} satisfies Record<string, Manner>;

/**
 * What a killed run leaves is a copy of its files in the middle of the pull: the journal first, then the
 * image, as a kill leaves them, unless the test says otherwise.
 */
describe("an image that a killed run began", () => {
  const disk = new MemoryDisk({ size: SIZE });
  let server: NbdServer;
  let full: Buffer;
  /** Those that tests share, by what they are. */
  const runs = new Map<string, Promise<Killed>>();
  let all: string;
  /** What the image keeps whose journal is as it was left. */
  let keptOfWhole: number | undefined;
  beforeAll(async () => {
    all = await mkdtemp(join(tmpdir(), "nbdpull-resume-"));
    const noise = createCipheriv("aes-128-ctr", Buffer.alloc(16), Buffer.alloc(16));
    for (let at = 0; at + MiB <= SIZE; at += MiB) {
      // Half of each mebibyte can be compressed, and some of it are zeroes that the server does not know of.
      disk.write(at, noise.update(Buffer.alloc(512 * KiB)));
      disk.write(at + 512 * KiB, Buffer.alloc(384 * KiB, at / MiB + 1));
      disk.write(at + 896 * KiB, Buffer.alloc(128 * KiB));
    }
    disk.write(SIZE - 700, Buffer.alloc(700, 0x5a));
    disk.startBitmap(BITMAP, 4 * KiB);
    for (let at = 0; at + 64 * KiB <= SIZE; at += 64 * KiB) {
      if ((at / 64 / KiB) % 3 === 0) disk.write(at + 8 * KiB, noise.update(Buffer.alloc(20 * KiB)));
      else disk.write(at, noise.update(Buffer.alloc(64 * KiB)));
    }
    const frozen = disk.freeze();
    full = Buffer.alloc(SIZE);
    server = await NbdServer.listen({ exports: () => frozen, address: { host: "127.0.0.1", port: 0 } });
    full = await whole();
  });
  afterAll(async () => {
    await server.close();
    await rm(all, { recursive: true });
  });

  async function whole(): Promise<Buffer> {
    await using client = await openExport(parseNbdUri(server.uri("vda")), undefined, {});
    const bytes = Buffer.alloc(SIZE);
    for (let at = 0; at < SIZE; at += MiB) await client.read(at, bytes.subarray(at, at + MiB));
    return bytes;
  }

  interface PullSettings extends Manner {
    readonly bitmap?: string;
    readonly resume?: boolean;
    readonly key?: Buffer;
    readonly facts?: Readonly<Record<string, unknown>>;
    readonly onProgress?: (position: number) => void;
  }

  async function pullInto(folder: string, settings: PullSettings): Promise<PullResult> {
    const { bitmap, resume = false, key = KEY, facts = { point: "p" }, onProgress, ...manner } = settings;
    const client = await openExport(parseNbdUri(server.uri("vda")), bitmap, {});
    try {
      return await pullImage({
        ...manner,
        client,
        bitmap,
        imagePath: imageIn(folder, manner),
        mapPath: bitmap !== undefined && manner.format === "raw" ? join(folder, "vda.map") : undefined,
        digests: { path: join(folder, "vda.digests"), algorithm: "sha256" },
        journal: { path: join(folder, "vda.journal"), key, facts, resume },
        sync: false,
        window: { requestSize: 512 * KiB },
        onProgress: ({ position }) => onProgress?.(position),
      });
    } finally {
      await client.close();
    }
  }

  function imageIn(folder: string, { format }: Manner): string {
    return join(folder, `vda.${format}`);
  }

  /** A copy of the folder of a run that was killed behind the middle, and the folder of one that was not. */
  async function killed(manner: Manner, settings: KillSettings = {}): Promise<Killed> {
    const name = JSON.stringify([manner, settings]);
    const made = runs.get(name) ?? kill(manner, settings, join(all, String(runs.size)));
    runs.set(name, made);
    const run = await made;
    return { ...run, left: await copyOf(run.left) };
  }

  /** Progress is told every 100 ms at most, and a run may be too quick to be taken in the right moment. */
  async function kill(manner: Manner, settings: KillSettings, at: string): Promise<Killed> {
    for (let tries = 1; tries <= 10; tries += 1) {
      const taken = await killOnce(manner, settings, join(at, String(tries)));
      if (taken) return taken;
    }
    throw new Error("no run was slow enough");
  }

  /** @returns undefined if nothing was told between the journal's first records and the end */
  async function killOnce(
    manner: Manner,
    { bitmap, imageFirst = false }: KillSettings,
    at: string,
  ): Promise<Killed | undefined> {
    const [folder, left] = [join(at, "whole"), join(at, "left")];
    for (const each of [folder, left]) mkdirSync(each, { recursive: true });
    const take = (name: string): void => {
      if (existsSync(join(folder, name))) copyFileSync(join(folder, name), join(left, name));
    };
    const files = ["vda.journal", `vda.${manner.format}`, "vda.digests", "vda.map"];
    const order = imageFirst ? [...files].reverse() : files;
    const journalBytes = (): number =>
      statSync(join(folder, "vda.journal"), { throwIfNoEntry: false })?.size ?? 0;
    let isTaken = false;
    let isImageTaken = false;
    const undisturbed = await pullInto(folder, {
      ...manner,
      ...(bitmap === undefined ? {} : { bitmap }),
      onProgress: (position) => {
        if (imageFirst && !isImageTaken && position > SIZE / 3) {
          isImageTaken = true;
          take(`vda.${manner.format}`);
        }
        if (isTaken || position < (SIZE * 2) / 3 || journalBytes() < 8 * KiB) return;
        isTaken = true;
        for (const name of order) if (!(imageFirst && name === `vda.${manner.format}`)) take(name);
      },
    });
    return isTaken ? { left, undisturbed, folder } : undefined;
  }

  /** Expects the image to be what an undisturbed run makes. */
  async function expectSame(
    left: string,
    resumed: PullResult,
    undisturbed: PullResult,
    manner: Manner,
  ): Promise<void> {
    expect(resumed.digestsSha256).toBe(undisturbed.digestsSha256);
    const { dirtyBytes, dataBytes, zeroBytes, storedBytes } = undisturbed;
    expect(resumed).toMatchObject({ dirtyBytes, dataBytes, zeroBytes, storedBytes });
    const image = imageIn(left, manner);
    if (manner.format === "qcow2") await assertSound(image);
    const bytes = await guestBytes(image, manner.format);
    expect(bytes.subarray(0, SIZE).equals(full)).toBe(true);
  }

  describe.each(Object.entries(MANNERS))("%s", (_, manner: Manner) => {
    it("is completed, and only what was missing is read", async () => {
      const { left, undisturbed } = await killed(manner);
      const resumed = await pullInto(left, { ...manner, resume: true });
      // One flush at least has come before.
      expect(resumed.keptBytes).toBeGreaterThanOrEqual(16 * MiB);
      expect(resumed.readBytes).toBeLessThanOrEqual(SIZE - 16 * MiB);
      await expectSame(left, resumed, undisturbed, manner);
    });

    it("is completed again when only the commit was missing", async () => {
      const { folder: whole, undisturbed } = await killed(manner);
      const folder = await copyOf(whole);
      const resumed = await pullInto(folder, { ...manner, resume: true });
      expect(resumed.keptBytes).toBe(undisturbed.dataBytes);
      expect(resumed.readBytes).toBe(0);
      await expectSame(folder, resumed, undisturbed, manner);
    });

    it("is completed as an increment, with clusters that are defined in part", async () => {
      const { left, undisturbed, folder } = await killed(manner, { bitmap: BITMAP });
      const resumed = await pullInto(left, { ...manner, bitmap: BITMAP, resume: true });
      expect(resumed.keptBytes).toBeGreaterThan(8 * MiB);
      expect(resumed.readBytes).toBeLessThan(undisturbed.readBytes - 8 * MiB);
      expect(resumed.digestsSha256).toBe(undisturbed.digestsSha256);
      const [one, other] = await Promise.all(
        [left, folder].map((each) => guestBytes(imageIn(each, manner), manner.format)),
      );
      expect(one?.equals(other as Buffer)).toBe(true);
      if (manner.format === "raw") {
        expect(await readFile(join(left, "vda.map"), "utf8")).toBe(
          await readFile(join(folder, "vda.map"), "utf8"),
        );
      }
    });

    it("is pulled again from where the file is not what the journal says", async () => {
      const { left, undisturbed } = await killed(manner);
      await flipByte(imageIn(left, manner), 12 * MiB);
      const resumed = await pullInto(left, { ...manner, resume: true });
      expect(resumed.keptBytes).toBeLessThan(32 * MiB);
      await expectSame(left, resumed, undisturbed, manner);
    });

    it("is pulled again from where the data has not reached the disk", async () => {
      const { left, undisturbed } = await killed(manner, { imageFirst: true });
      await truncate(imageIn(left, manner), Math.floor((await stat(imageIn(left, manner))).size / 5));
      const resumed = await pullInto(left, { ...manner, resume: true });
      expect(resumed.keptBytes).toBeLessThan(SIZE / 2);
      await expectSame(left, resumed, undisturbed, manner);
    });
  });

  it.each([
    ["is torn", async (journal: string) => truncate(journal, (await stat(journal)).size - 10), true],
    [
      "has a changed record",
      async (journal: string) => flipByte(journal, (await stat(journal)).size - 300),
      true,
    ],
    ["has a changed header", (journal: string) => flipByte(journal, 50), false],
    ["promises an endless record", (journal: string) => write(journal, 0, Buffer.from([0xff, 0xff])), false],
    ["is empty", (journal: string) => truncate(journal, 0), false],
    ["is missing", (journal: string) => rm(journal), false],
  ])("whose journal %s is completed", async (_, damage, keeps) => {
    const manner = MANNERS.qcow2;
    const { left, undisturbed } = await killed(manner);
    keptOfWhole ??= (await pullInto((await killed(manner)).left, { ...manner, resume: true })).keptBytes;
    await damage(join(left, "vda.journal"));
    const resumed = await pullInto(left, { ...manner, resume: true });
    if (keeps) {
      expect(resumed.keptBytes).toBeLessThan(keptOfWhole ?? 0);
      // The records before the last one count.
      if ((keptOfWhole ?? 0) > 16 * MiB) expect(resumed.keptBytes).toBeGreaterThan(0);
    } else expect(resumed.keptBytes).toBeUndefined();
    await expectSame(left, resumed, undisturbed, manner);
  });

  it.each([
    ["another key", { ...MANNERS.qcow2, key: Buffer.alloc(32, 8) }],
    ["another point", { ...MANNERS.qcow2, facts: { point: "q" } }],
    ["another compression", MANNERS["compressed qcow2"]],
    ["an increment", { ...MANNERS.qcow2, bitmap: BITMAP }],
  ])("is begun anew for %s", async (_, settings: PullSettings) => {
    const { left } = await killed(MANNERS.qcow2);
    const { keptBytes } = await pullInto(left, { ...settings, resume: true });
    expect(keptBytes).toBeUndefined();
    const { bitmap } = settings;
    const bytes = await guestBytes(imageIn(left, settings), settings.format);
    if (bitmap === undefined) expect(bytes.subarray(0, SIZE).equals(full)).toBe(true);
  });

  it.each([
    ["image", "vda.qcow2", symlink],
    ["image", "vda.qcow2", link],
    ["journal", "vda.journal", symlink],
    ["journal", "vda.journal", link],
  ])(
    "is begun anew if a link is in the place of the %s, and what it leads to stays",
    async (_, name, put) => {
      const { left, undisturbed } = await killed(MANNERS.qcow2);
      const victim = join(left, "victim");
      await writeFile(victim, await readFile(join(left, name)));
      const before = await readFile(victim);
      await rm(join(left, name));
      await put(victim, join(left, name));
      const resumed = await pullInto(left, { ...MANNERS.qcow2, resume: true });
      expect(resumed.keptBytes).toBeUndefined();
      expect((await readFile(victim)).equals(before)).toBe(true);
      await expectSame(left, resumed, undisturbed, MANNERS.qcow2);
    },
  );
});

async function copyOf(folder: string): Promise<string> {
  const copy = (await scratch())("copy");
  cpSync(folder, copy, { recursive: true });
  return copy;
}

async function write(path: string, at: number, bytes: Buffer): Promise<void> {
  await using file = await open(path, "r+");
  await file.write(bytes, 0, bytes.length, at);
}
