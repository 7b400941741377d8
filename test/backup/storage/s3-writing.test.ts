/** Two who write points of one domain to Ceph, of whom the first has lost its lease without knowing. */
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { isPointId } from "../../../src/backup/repository/manifest.js";
import { mergeState } from "../../../src/backup/repository/merged-manifest.js";
import type { Bucket } from "../../../src/backup/s3/bucket.js";
import { writeInS3 } from "../../../src/backup/storage/s3-writing.js";
import type { StoreWriting } from "../../../src/backup/storage/stored-writing.js";
import type { BreakingStore } from "../../support/breaking-store.js";
import { describeWith } from "../../support/tools.js";
import { withTwoWriters } from "../../support/two-writers.js";

const ID = "20261129T220000.000Z";
const TEXT = '{"id": "a point"}';
const ALL = { conditionalCreate: true, conditionalReplace: true };

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "whoever writes points to an object store", () => {
  let line: BreakingStore;
  let mine: Bucket;
  let other: Bucket;
  let prefix = "";
  let rounds = 0;
  const begun: StoreWriting[] = [];

  withTwoWriters((writers) => {
    ({ line, mine, other } = writers);
  });
  beforeEach(() => {
    prefix = `round-${rounds++}/vm/`;
  });
  afterEach(async () => {
    line.fault = () => undefined;
    for (const writing of begun.splice(0)) await writing.release();
  });

  async function write(bucket: Bucket, abilities = ALL, signal?: AbortSignal): Promise<StoreWriting> {
    const points = { manifest: "point.json", isPoint: isPointId, mergeState, onChange: () => undefined };
    const place = { bucket, prefix, path: "s3://backups/vm", ...points };
    const writing = await writeInS3(place, { abilities, of: "vm", signal });
    begun.push(writing);
    return writing;
  }

  /** As after a minute in which the first one was suspended. */
  async function takeOver(): Promise<StoreWriting> {
    await other.remove([`${prefix}.lease`]);
    const writing = await write(other);
    await writing.clearLeftovers();
    return writing;
  }

  /** Without the lease. */
  async function keys(): Promise<string[]> {
    const found: string[] = [];
    for await (const { key } of other.list(prefix)) found.push(key.slice(prefix.length));
    return found.filter((name) => name !== ".lease");
  }

  const lost = { code: "E_LEASE_LOST" };
  const image = `${ID}/vda.qcow2`;
  const manifest = `${ID}/point.json`;
  const note = `.${ID}.partial`;

  it("removes nothing of its point when the next one makes a point of the same id", async () => {
    const first = await (await write(mine)).begin(ID);
    await first.create("vda.qcow2", Buffer.from("first"));
    const second = await (await takeOver()).begin(ID);
    await second.create("vda.qcow2", Buffer.from("second"));
    await first.discard().catch(() => undefined);
    expect(await keys()).toEqual([note, image]);
    await second.publish("point.json", TEXT);
    expect(await keys()).toEqual([manifest, image]);
  });

  it("removes what it has begun as long as it has the lease", async () => {
    const writing = await write(mine);
    const point = await writing.begin(ID);
    await point.create("vda.qcow2", Buffer.from("first"));
    await point.discard();
    expect(await keys()).toEqual([]);
    await writing.begin(ID);
  });

  it.each([
    ["a signal", true],
    ["a failure", false],
  ])(
    "removes nothing after %s of what the next one goes on with, since that could be done later",
    async (_, isStopped) => {
      const stop = new AbortController();
      const { signal } = stop;
      const writing = await write(mine, ALL, signal);
      const point = await writing.begin(ID, { goOn: true, signal });
      await point.create("vda.qcow2", Buffer.from("first"));
      if (isStopped) stop.abort(new Error("enough"));
      await point.discard();
      expect(await keys()).toEqual([note, image]);
      await writing.release();
      const next = await write(other);
      const second = await next.begin(ID, { goOn: true });
      expect(second.at("vda.qcow2").leftWhole?.("first".length)).toBeDefined();
      await second.discard();
      expect(await keys()).toEqual([note, image]);
      await next.clearLeftovers();
      expect(await keys()).toEqual([]);
    },
  );

  it("has the next one look when it has lost the lease and is late, too", async () => {
    const stop = new AbortController();
    const { signal } = stop;
    const writing = await write(mine, ALL, signal);
    const point = await writing.begin(ID, { signal });
    const next = await takeOver();
    await expect(writing.assertHeld()).rejects.toMatchObject(lost);
    stop.abort(new Error("enough"));
    await sleep(10_500);
    await expect(point.discard()).rejects.toMatchObject(lost);
    expect(await keys()).toEqual([note]);
    await next.clearLeftovers();
    expect(await keys()).toEqual([]);
  }, 20_000);

  it("leaves a point alone that the next one has kept, when the answer about its manifest was lost", async () => {
    const point = await (await write(mine)).begin(ID);
    await point.create("vda.qcow2", Buffer.from("first"));
    let isPut = false;
    let next: StoreWriting | undefined;
    line.fault = ({ method, url }) => {
      if (method !== "PUT" || !url.includes("point.json") || next) return undefined;
      if (isPut) return "hang up";
      isPut = true;
      return "lose answer";
    };
    const publishing = expect(point.publish("point.json", TEXT)).rejects.toMatchObject(lost);
    await expect.poll(keys).toContain(manifest);
    next = await takeOver();
    expect(await keys()).toEqual([manifest, image]);
    await publishing;
    await point.discard().catch(() => undefined);
    await next.clearLeftovers();
    expect(await keys()).toEqual([manifest, image]);
  });

  it("leaves a point alone that the next one has made with the same manifest", async () => {
    const first = await (await write(mine)).begin(ID);
    const second = await (await takeOver()).begin(ID);
    await second.create("vda.qcow2", Buffer.from("the same"));
    await second.publish("point.json", TEXT);
    await expect(first.publish("point.json", TEXT)).rejects.toMatchObject(lost);
    expect(await keys()).toEqual(expect.arrayContaining([manifest, image]));
  });

  it("makes no point of a manifest that comes when its files are gone", async () => {
    const point = await (await write(mine)).begin(ID);
    await point.create("vda.qcow2", Buffer.from("first"));
    const next = await takeOver();
    expect(await keys()).toEqual([]);
    await expect(point.publish("point.json", TEXT)).rejects.toMatchObject(lost);
    // Whoever verified it meanwhile.
    await other.put(`${prefix}${ID}/.damage.json`, Buffer.from("{}"));
    await next.clearLeftovers();
    expect(await keys()).toEqual([]);
  });

  it("has the next one look when it loses the lease right after it has put its manifest", async () => {
    const writing = await write(mine);
    const point = await writing.begin(ID);
    await point.create("vda.qcow2", Buffer.from("first"));
    const next = await takeOver();
    line.fault = ({ method, url }) =>
      method === "GET" && url.includes(".partial") ? { answer: 503, code: "SlowDown" } : undefined;
    const publishing = expect(point.publish("point.json", TEXT)).rejects.toMatchObject(lost);
    await expect.poll(keys).toContain(manifest);
    await expect(writing.assertHeld()).rejects.toMatchObject(lost);
    await publishing;
    await next.clearLeftovers();
    expect(await keys()).toEqual([]);
  });

  it.each([false, true])(
    "has the next one look when it has put a file after its note was cleared, goOn: %s",
    async (goOn) => {
      const point = await (await write(mine)).begin(ID, { goOn });
      const next = await takeOver();
      await point.create("vda.qcow2", Buffer.from("late"));
      await expect(point.discard()).rejects.toMatchObject(lost);
      await next.clearLeftovers();
      expect(await keys()).toEqual([]);
    },
  );

  it("makes no point of one that comes while they are cleared away", async () => {
    const point = await (await write(other)).begin(ID);
    await point.create("vda.qcow2", Buffer.from("first"));
    await other.remove([`${prefix}.lease`]);
    const next = await write(mine);
    let publishing: Promise<void> | undefined;
    let isLate = false;
    line.fault = ({ method, url }) => {
      if (method !== "DELETE" || isLate || !url.includes(".partial")) return undefined;
      publishing ??= expect(point.publish("point.json", TEXT))
        .rejects.toMatchObject(lost)
        .finally(() => {
          isLate = true;
        });
      return { answer: 503, code: "SlowDown" };
    };
    await next.clearLeftovers();
    await publishing;
    expect(isLate).toBe(true);
    expect(await keys()).toEqual([]);
  });

  it("removes no point when the next one may be basing another on it", async () => {
    const writing = await write(mine);
    const point = await writing.begin(ID);
    await point.create("vda.qcow2", Buffer.from("first"));
    await point.publish("point.json", TEXT);
    await takeOver();
    await expect(writing.removePoint(ID)).rejects.toMatchObject(lost);
    expect(await keys()).toEqual(expect.arrayContaining([manifest, image]));
  });

  it("makes points where the store says that it knows no conditions", async () => {
    line.fault = () => "refuse conditions";
    const writing = await write(mine, { conditionalCreate: false, conditionalReplace: false });
    const point = await writing.begin(ID);
    await point.create("vda.qcow2", Buffer.from("first"));
    await point.publish("point.json", TEXT);
    expect(await keys()).toEqual([manifest, image]);
    const again = await other.get(`${prefix}${manifest}`, 100);
    expect(again?.bytes.toString()).toBe(TEXT);
  });

  it("begins no point among the objects of another program, and leaves them alone", async () => {
    await other.put(`${prefix}${image}`, Buffer.from("being copied there"));
    const writing = await write(mine);
    await writing.clearLeftovers();
    await expect(writing.begin(ID)).rejects.toMatchObject({
      name: "PreconditionError",
      code: "E_FOREIGN_OBJECTS",
    });
    expect(await keys()).toEqual([image]);
  });
});
