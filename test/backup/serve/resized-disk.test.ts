import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ImageFormat } from "../../../src/backup/image/image.js";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { Repository } from "../../../src/backup/repository/repository.js";
import { ChainView } from "../../../src/backup/serve/chain-view.js";
import { takePoint } from "../../../src/backup/take/take-point.js";
import { MemoryDisk, NbdServer, parseNbdUri, type ServedExport } from "../../../src/nbd/index.js";
import { makeFolder } from "../../nbd/servers.js";
import { numbered } from "./numbered.js";

const CLUSTER = 64 * 1024;
const DOMAIN = "guest";

describe("a disk that was resized between points", () => {
  async function taken(
    sizes: readonly number[],
    format: ImageFormat,
  ): Promise<{ repository: Repository; points: Manifest[]; contents: Buffer[] } & AsyncDisposable> {
    const folder = await makeFolder();
    let shown: ServedExport | undefined;
    const server = await NbdServer.listen({
      exports: () => shown,
      address: { path: join(folder.path, "nbd.sock") },
    });
    const repository = await Repository.openOrCreate(join(folder.path, "repo"));
    const points: Manifest[] = [];
    const contents: Buffer[] = [];
    for (const [i, size] of sizes.entries()) {
      const disk = new MemoryDisk({ size });
      disk.write(0, (contents[i - 1] ?? numbered(size)).subarray(0, size));
      disk.startBitmap("since", 4096);
      disk.write(2 * CLUSTER + 8192, numbered(8192, i));
      if (i === 2) disk.write(size - 5000, numbered(5000, i));
      contents.push(Buffer.from(disk.read(0, size)));
      shown = disk.freeze();
      const parent = points.at(-1);
      const address = parseNbdUri(server.uri("vda"));
      const { manifest } = await takePoint({
        repository,
        domain: { name: DOMAIN, uuid: null },
        disks: [{ name: "vda", address, increment: parent && { bitmap: "since", parent } }],
        checkpoint: null,
        format,
        digests: "xxh64",
        sync: false,
        tool: "test",
        connect: {},
        confirm: async () => undefined,
      });
      points.push(manifest);
    }
    const dispose = async (): Promise<void> => {
      await server.close();
      await folder[Symbol.asyncDispose]();
    };
    return { repository, points, contents, [Symbol.asyncDispose]: dispose };
  }

  const small = 10 * CLUSTER + 1536;
  it.each(["qcow2", "raw"] as const)(
    "reads as it was at each point, with zeroes where it grew: %s",
    async (format) => {
      for (const sizes of [
        [small, 2 * small, 3 * small],
        [3 * small, small, 2 * small],
      ]) {
        await using story = await taken(sizes, format);
        for (const [i, point] of story.points.entries()) {
          await using view = await ChainView.open(story.repository, DOMAIN, point, "vda");
          const expected = story.contents[i] as Buffer;
          const found = await view.read(0, view.size);
          expect([view.size, found.equals(expected)]).toEqual([expected.length, true]);
          for (let at = 0; at < view.size; at += 3500) {
            const piece = await view.read(at, Math.min(3500, view.size - at));
            expect(piece.equals(expected.subarray(at, at + piece.length))).toBe(true);
          }
        }
      }
    },
  );
});
