import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { prune } from "../../src/backup/prune/prune.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { MemoryDisk, NbdServer, parseNbdUri, type ServedExport } from "../../src/nbd/index.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { restoreDisk } from "../support/restore-disk.js";
import { beginsWith, hasBytes } from "../support/same-bytes.js";
import { describeWith } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const DOMAIN = "guest";
const DISKS: readonly string[] = ["vda", "vdb", "vdc"];

/** For each point but the first: how far back each disk's parent is; 0 means a full one. */
const STORIES = [
  {
    name: "one disk is full again",
    parents: [
      [1, 1, 1],
      [1, 0, 1],
      [1, 1, 1],
      [1, 1, 0],
    ],
  },
  {
    name: "each disk is based on another point",
    parents: [
      [1, 1, 1],
      [1, 2, 1],
      [1, 2, 3],
      [2, 1, 1],
    ],
  },
  {
    name: "one disk skips points",
    parents: [
      [1, 1, 0],
      [1, 2, 1],
      [1, 3, 2],
      [1, 4, 0],
    ],
  },
];

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-prune-disks-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

describeWith(["qemu-img"], "prune of points with several disks", () => {
  it.each(STORIES)(
    "leaves each disk of the kept points unchanged: $name",
    async ({ parents }) => {
      const disks = DISKS.map(() => new MemoryDisk({ size: 2 * MiB + 577 }));
      let frozen: ServedExport[] = [];
      await using server = await NbdServer.listen({
        exports: (name) => frozen[DISKS.indexOf(name)],
        address: { path: join(folder, "nbd.sock") },
      });
      const repository = await Repository.openOrCreate(join(folder, "repo"));
      const points: Manifest[] = [];
      const contents: Buffer[][] = [];
      for (const [index, back] of [[0, 0, 0], ...parents].entries()) {
        for (const [d, disk] of disks.entries()) {
          disk.write(
            ((index * 7 + d * 3) % 28) * 64 * KiB + 1000,
            Buffer.alloc(150 * KiB, 1 + index * 3 + d),
          );
          disk.discard(((index * 5 + d) % 30) * 64 * KiB, 64 * KiB);
        }
        frozen = disks.map((disk) => disk.freeze());
        contents.push(disks.map((disk) => Buffer.from(disk.read(0, disk.size))));
        const taken = await takePoint({
          repository,
          domain: { name: DOMAIN, uuid: null },
          disks: DISKS.map((name, d) => {
            const from = index - (back[d] ?? 0);
            const parent = points[from];
            const increment = parent && from < index ? { bitmap: `b${from}`, parent } : undefined;
            return { name, address: parseNbdUri(server.uri(name)), increment };
          }),
          checkpoint: null,
          format: "qcow2",
          digests: "xxh64",
          sync: false,
          tool: "test",
          connect: {},
          confirm: async () => undefined,
        });
        points.push(taken.manifest);
        for (const disk of disks) disk.startBitmap(`b${index}`, 4096);
      }
      for (const last of [3, 2, 1]) {
        await prune({ repository, domain: DOMAIN, retention: { last }, dryRun: false, sync: false });
        const ids = await repository.pointIds(DOMAIN);
        for (const [index, { id }] of points.entries()) {
          if (!ids.includes(id)) continue;
          const point = await repository.point(DOMAIN, id);
          for (const [d, diskName] of DISKS.entries()) {
            const targetPath = join(folder, "ours.raw");
            const content = contents[index]?.[d] ?? Buffer.alloc(0);
            await restoreDisk({
              repository,
              point,
              diskName,
              targetPath,
              format: "raw",
              force: true,
              sync: false,
            });
            expect(hasBytes(targetPath, content)).toBe(true);
            const image = join(repository.pointFolder(DOMAIN, id), `${diskName}.qcow2`);
            await qemuImg("check", image);
            await qemuImg("convert", "-O", "raw", image, join(folder, "theirs.raw"));
            expect(beginsWith(join(folder, "theirs.raw"), content)).toBe(true);
          }
        }
        const reports = await verifyPoints(repository, DOMAIN, ids);
        expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
      }
      expect(await repository.pointIds(DOMAIN)).toHaveLength(1);
    },
    120_000,
  );
});
