import { truncate } from "node:fs/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import type { DigestAlgorithm } from "../../../src/backup/digest/algorithms.js";
import { createDigester, digestClusters } from "../../../src/backup/digest/digest.js";
import { DigestBehind } from "../../../src/backup/digest/digest-behind.js";
import { DigestFileReader } from "../../../src/backup/digest/digest-file-reader.js";
import { DigestFileWriter } from "../../../src/backup/digest/digest-file-writer.js";
import { DigestThreads } from "../../../src/backup/digest/digest-threads.js";
import type { ClusterRun, Geometry, ImageWriter } from "../../../src/backup/image/image.js";
import { createImage } from "../../../src/backup/pull/create-image.js";
import { ImageLedger } from "../../../src/backup/pull/image-ledger.js";
import { collect } from "../../support/collect.js";
import { fillCluster, KiB, scratch } from "../image/support.js";

const CLUSTER = 64 * KiB;
const geometry: Geometry = { virtualSize: 40 * CLUSTER, clusterSize: CLUSTER };

/** An image with a stored cluster for each of the first 20 ranks, and the runs that were added to it. */
async function laidOut(): Promise<{
  path: string;
  file: (name: string) => string;
  writer: ImageWriter;
  added: ClusterRun[];
}> {
  const file = await scratch();
  const path = file("image.qcow2");
  const writer = await createImage(path, { format: "qcow2", geometry });
  onTestFinished(() => writer.close());
  for (let rank = 0; rank < 20; rank += 1) {
    writer.writeNow(writer.hostOffset(0, rank), fillCluster(1, rank, CLUSTER));
  }
  const added: ClusterRun[] = [];
  const { addRun } = writer;
  writer.addRun = (run) => {
    added.push(run);
    addRun.call(writer, run);
  };
  return { path, file, writer, added };
}

function behindOf(path: string, algorithm: DigestAlgorithm): DigestBehind {
  const threads = new DigestThreads(algorithm);
  onTestFinished(() => threads.close());
  return new DigestBehind(path, threads);
}

const host = (rank: number): number => (1 + rank) * CLUSTER;
const RUNS: ClusterRun[][] = [
  [{ kind: "data", cluster: 0, count: 3, hostOffset: host(0) }],
  [
    { kind: "zero", cluster: 3, count: 2 },
    { kind: "partial", cluster: 5, count: 1, dataMask: 5, zeroMask: 2, hostOffset: host(3) },
    { kind: "partial", cluster: 6, count: 1, dataMask: 0, zeroMask: 2, hostOffset: 0 },
    { kind: "data", cluster: 8, count: 2, hostOffset: host(4) },
  ],
  [{ kind: "zero", cluster: 20, count: 9 }],
];

describe("the ledger", () => {
  it.each([
    [true, RUNS.flat().filter(({ kind }) => kind !== "zero")],
    [false, RUNS.flat()],
  ])(
    "adds the runs to the image, without zeroes if everything else is zero: %s",
    async (complete, expected) => {
      const { writer, added } = await laidOut();
      const ledger = new ImageLedger({ writer, complete });
      for (const runs of RUNS) {
        await ledger.capacity();
        ledger.record(runs);
      }
      await ledger.complete();
      expect(added).toEqual(expected);
    },
  );

  it("adds digests with the runs, in the order of the runs", async () => {
    const { path, file, writer, added } = await laidOut();
    const algorithm = "xxh64";
    const digests = file("digests");
    const entries = await DigestFileWriter.create(digests, { algorithm, geometry, complete: false });
    onTestFinished(() => entries.close());
    const behind = behindOf(path, algorithm);
    const ledger = new ImageLedger({
      writer,
      complete: false,
      digests: { algorithm, behind, file: entries },
    });
    for (const runs of RUNS) ledger.record(runs);
    await ledger.complete();
    await entries.finish({ sync: false });
    expect(added).toEqual(RUNS.flat());

    const digester = await createDigester(algorithm);
    const digestsAt = (
      rank: number,
      run: { kind: "data" | "partial"; cluster: number; count: number; dataMask?: number },
    ) => {
      const slots = Buffer.concat(
        Array.from({ length: run.count }, (_, at) => fillCluster(1, rank + at, CLUSTER)),
      );
      return digestClusters(digester, run, slots, geometry);
    };
    const reader = await DigestFileReader.open(digests);
    onTestFinished(() => reader.close());
    expect(await collect(reader.runs())).toMatchObject([
      { kind: "data", cluster: 0, count: 3, digests: digestsAt(0, { kind: "data", cluster: 0, count: 3 }) },
      { kind: "zero", cluster: 3, count: 2 },
      {
        ...{ kind: "partial", cluster: 5, count: 1, dataMask: 5, zeroMask: 2 },
        digests: digestsAt(3, { kind: "partial", cluster: 5, count: 1, dataMask: 5 }),
      },
      { kind: "partial", cluster: 6, count: 1, dataMask: 0, zeroMask: 2, digests: Buffer.alloc(0) },
      { kind: "data", cluster: 8, count: 2, digests: digestsAt(4, { kind: "data", cluster: 8, count: 2 }) },
      { kind: "zero", cluster: 20, count: 9 },
    ]);
  });

  it("digests a cluster whose last bytes are zeroes past the end of the file", async () => {
    const { path, file, writer } = await laidOut();
    const algorithm = "xxh64";
    const entries = await DigestFileWriter.create(file("digests"), { algorithm, geometry, complete: true });
    onTestFinished(() => entries.close());
    const behind = behindOf(path, algorithm);
    const ledger = new ImageLedger({ writer, complete: true, digests: { algorithm, behind, file: entries } });
    const partial = { kind: "partial", cluster: 5, count: 1, dataMask: 0x80000001, zeroMask: 0 } as const;
    writer.writeNow(writer.hostOffset(0, 25), Buffer.alloc(100, 7));
    ledger.record([{ kind: "data", cluster: 0, count: 1, hostOffset: host(25) }]);
    ledger.record([{ ...partial, hostOffset: host(30) }]);
    ledger.record([]);
    await ledger.complete();
    await entries.finish({ sync: false });

    const digester = await createDigester(algorithm);
    const cluster = Buffer.alloc(CLUSTER);
    const empty = digestClusters(digester, partial, cluster, geometry);
    cluster.fill(7, 0, 100);
    const reader = await DigestFileReader.open(file("digests"));
    onTestFinished(() => reader.close());
    const digests = digestClusters(digester, { kind: "data", cluster: 0, count: 1 }, cluster, geometry);
    expect(await collect(reader.runs())).toMatchObject([
      { kind: "data", cluster: 0, count: 1, digests },
      { ...partial, digests: empty },
    ]);
  });

  it("fails waits for capacity and for completion if digests can't be made", async () => {
    const { path, file, writer } = await laidOut();
    const algorithm = "sha256";
    const entries = await DigestFileWriter.create(file("digests"), { algorithm, geometry, complete: true });
    onTestFinished(() => entries.close());
    const behind = behindOf(path, algorithm);
    const ledger = new ImageLedger({ writer, complete: true, digests: { algorithm, behind, file: entries } });
    // As if stored data had been lost since: the writer does not know.
    await truncate(path, 0);
    ledger.record([{ kind: "data", cluster: 0, count: 1, hostOffset: host(3) }]);
    await expect(ledger.complete()).rejects.toMatchObject({ code: "E_DIGEST_READ" });
    await expect(ledger.capacity()).rejects.toMatchObject({ code: "E_DIGEST_READ" });
    ledger.record(RUNS[0] ?? []);
    await expect(ledger.complete()).rejects.toMatchObject({ code: "E_DIGEST_READ" });
  });

  it("fails if the tables can't hold a run, but only when it is asked", async () => {
    const { path, file, writer } = await laidOut();
    const algorithm = "xxh64";
    const entries = await DigestFileWriter.create(file("digests"), { algorithm, geometry, complete: true });
    onTestFinished(() => entries.close());
    const behind = behindOf(path, algorithm);
    const ledger = new ImageLedger({ writer, complete: true, digests: { algorithm, behind, file: entries } });
    writer.addRun = () => {
      throw new Error("too large");
    };
    ledger.record(RUNS[0] ?? []);
    await expect(ledger.complete()).rejects.toThrow("too large");
    await expect(ledger.capacity()).rejects.toThrow("too large");
  });
});
