/** Copies that were killed inside a point, and what goes on with them: folders and Ceph. */
import { createHash } from "node:crypto";
import { mkdtemp, open, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  GetBucketLifecycleConfigurationCommand,
  GetObjectCommand,
  ListMultipartUploadsCommand,
  ListPartsCommand,
  PutBucketLifecycleConfigurationCommand,
  PutObjectCommand,
  type S3Client,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { copyDomain } from "../../src/backup/copy/copy-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { BreakingStore, type StoreFault } from "../support/breaking-store.js";
import { restoreEnvironment } from "../support/environment.js";
import { ageLocks } from "../support/left-by-prune.js";
import { keysIn, leftInStore } from "../support/left-in-store.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { Store } from "../support/store.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;
const BUCKET = "going";

describeWith(["radosgw", "ceph-mon", "ceph-osd", "qemu-img"], "a copy that was killed inside a point", () => {
  let store: Store;
  let line: BreakingStore;
  let client: S3Client;
  let chain: MemoryChain;
  let folder: string;
  /** Of the requests that have written something: "METHOD url". */
  let written: string[] = [];
  /** Settles when the point is in a store from which it can be copied. */
  let source: Promise<void> | undefined;
  const before = { ...process.env };

  /** A full point whose image has three parts. */
  beforeAll(async () => {
    [store, chain] = await Promise.all([Store.start(), MemoryChain.start(24 * MiB)]);
    line = await BreakingStore.start(store);
    client = store.client();
    await store.makeBucket(BUCKET);
    folder = await mkdtemp(join(tmpdir(), "nbdpull-goes-on-"));
    Object.assign(process.env, store.environment, { AWS_ENDPOINT_URL: line.endpoint });
    chain.disk.write(0, Buffer.alloc(18 * MiB, "some of the guest's data; "));
    await chain.take({ full: true, digests: "sha256" });
  });
  afterAll(async () => {
    restoreEnvironment(before);
    await line?.[Symbol.asyncDispose]();
    await chain?.[Symbol.asyncDispose]();
    await store?.[Symbol.asyncDispose]();
    if (folder) await rm(folder, { recursive: true, force: true });
  });
  afterEach(() => {
    line.fault = () => undefined;
  });

  const id = (): string => chain.points[0]?.id ?? "";
  const original = (name: string): Promise<Buffer> => readFile(join(chain.repository.path, NAME, id(), name));
  const note = (): void => {
    written = [];
    line.fault = ({ method, url }) => {
      if (method === "PUT") written.push(url);
      return undefined;
    };
  };
  const copyTo = async (to: string): Promise<void> => {
    const options = { from: chain.repository, to: await Repository.openOrCreate(to), domain: NAME };
    const { points } = await copyDomain({ ...options, signal: new AbortController().signal });
    expect(points.map(({ state }) => state)).toEqual(["copied"]);
  };

  /** Kills a copy when a request has come that is never answered, and the store has so much of an image. */
  async function killAt(prefix: string, what: RegExp, has: number | "all"): Promise<void> {
    const to = `s3://${BUCKET}/${prefix}`;
    expect(await nbdpull("init", to)).toMatchObject({ code: 0 });
    let silent = 0;
    line.fault = ({ method, url }) => {
      if (method !== "PUT" || !what.test(url)) return undefined;
      silent += 1;
      return "never answer";
    };
    const copying = startNbdpull(["copy", chain.repository.path, to]);
    await expect.poll(() => silent).toBeGreaterThan(0);
    await expect.poll(() => storedOf(prefix)).toBe(has);
    copying.kill("SIGKILL");
    await copying.ended;
    line.fault = () => undefined;
  }

  /** How many parts the store has of the image that is being uploaded. */
  async function storedOf(prefix: string): Promise<number | "all"> {
    const Prefix = `${prefix}/${NAME}/${id()}/vda.qcow2`;
    if ((await keysIn(client, BUCKET, Prefix)).length > 0) return "all";
    const { Uploads: [upload] = [] } = await client.send(
      new ListMultipartUploadsCommand({ Bucket: BUCKET, Prefix }),
    );
    if (!upload) return 0;
    const { Key, UploadId } = upload;
    const { Parts = [] } = await client.send(new ListPartsCommand({ Bucket: BUCKET, Key, UploadId }));
    return Parts.length;
  }

  async function expectStored(prefix: string): Promise<void> {
    for (const name of ["vda.qcow2", "vda.digests", "point.json"]) {
      const Key = `${prefix}/${NAME}/${id()}/${name}`;
      const { Body } = await client.send(new GetObjectCommand({ Bucket: BUCKET, Key }));
      expect((await original(name)).equals((await Body?.transformToByteArray()) ?? Buffer.alloc(0))).toBe(
        true,
      );
    }
    expect(await leftInStore(client, BUCKET, `${prefix}/`)).toEqual([]);
  }

  it("sends only the parts that the store lacks", async () => {
    const to = `s3://${BUCKET}/parts`;
    await killAt("parts", /partNumber=2/, 2);
    note();
    await copyTo(to);
    const parts = written.filter((url) => url.includes("partNumber"));
    expect(parts).toEqual([expect.stringContaining("partNumber=2")]);
    await expectStored("parts");
  });

  it("sends no file again that is whole, and removes what does not belong there", async () => {
    const to = `s3://${BUCKET}/whole`;
    await killAt("whole", /vda\.digests/, "all");
    const foreign = `whole/${NAME}/${id()}/vdb.qcow2`;
    await client.send(new PutObjectCommand({ Bucket: BUCKET, Key: foreign, Body: "?" }));
    note();
    await copyTo(to);
    expect(written.filter((url) => url.includes("vda.qcow2"))).toEqual([]);
    expect(await keysIn(client, BUCKET, foreign)).toEqual([]);
    await expectStored("whole");
  });

  it("sends again what is not the same", async () => {
    const to = `s3://${BUCKET}/other`;
    await killAt("other", /partNumber=3/, 2);
    const { Uploads = [] } = await client.send(
      new ListMultipartUploadsCommand({ Bucket: BUCKET, Prefix: "other/" }),
    );
    const { Key, UploadId } = Uploads[0] ?? {};
    const Body = Buffer.alloc(8 * MiB, "another content");
    await client.send(new UploadPartCommand({ Bucket: BUCKET, Key, UploadId, PartNumber: 2, Body }));
    note();
    await copyTo(to);
    const parts = written.flatMap((url) => /partNumber=\d/.exec(url) ?? []);
    expect(parts.sort()).toEqual(["partNumber=2", "partNumber=3"]);
    await expectStored("other");
  });

  it.each([
    ["goes on in a folder", false],
    ["begins anew in a folder where what is there is not the same", true],
  ])("%s", async (what, isSpoilt) => {
    // From a store, where each byte that is read costs something.
    const from = `s3://${BUCKET}/source`;
    source ??= copyTo(from);
    await source;
    const to = join(folder, `${isSpoilt}`);
    expect(await nbdpull("init", to)).toMatchObject({ code: 0 });
    const partial = join(to, NAME, `.${id()}.partial`);
    // What comes after is never answered.
    line.fault = ({ method, url, range }) =>
      method === "GET" && url.includes("vda.qcow2") && startOf(range) >= 12 * MiB
        ? "never answer"
        : undefined;
    const copying = startNbdpull(["copy", from, to, "--limit-rate", "20M"]);
    const bytes = (): Promise<number> =>
      stat(join(partial, "vda.qcow2")).then(
        ({ size }) => size,
        () => 0,
      );
    await expect.poll(bytes).toBeGreaterThan(9 * MiB);
    copying.kill("SIGKILL");
    await copying.ended;
    await ageLocks(join(to, NAME));
    const left = await stat(join(partial, "vda.qcow2"));
    if (isSpoilt) {
      await using handle = await open(join(partial, "vda.qcow2"), "r+");
      await handle.write(Buffer.alloc(4096), 0, 4096, 5 * MiB);
    }
    const ranges: number[] = [];
    line.fault = ({ method, url, range }) => {
      if (method === "GET" && url.includes("vda.qcow2")) ranges.push(lengthOf(range));
      return undefined;
    };
    const ran = await nbdpull("copy", from, to);
    expect([ran.code, ran.stderr], what).toEqual([0, ""]);
    const read = ranges.reduce((sum, length) => sum + length, 0);
    const image = join(to, NAME, id(), "vda.qcow2");
    expect((await readFile(image)).equals(await original("vda.qcow2"))).toBe(true);
    if (!isSpoilt) expect((await stat(image)).ino).toBe(left.ino);
    if (isSpoilt) expect(read).toBeGreaterThan(18 * MiB);
    else expect(read).toBeLessThan(18 * MiB - left.size + 5 * MiB);
    expect((await readdir(join(to, NAME))).filter((name) => !name.startsWith(".reader"))).toEqual([
      ".copied.json",
      id(),
    ]);
  });

  it("leaves uploads that a rule of the bucket ends, which init puts beside the others", async () => {
    for (const theirs of [
      { ID: "theirs", Status: "Enabled", Filter: { Prefix: "logs/" }, Expiration: { Days: 30 } },
      { ID: "older form", Status: "Disabled", Prefix: "old/", Expiration: { Days: 3 } },
    ] as const) {
      const Bucket = theirs.ID.replaceAll(" ", "-");
      await store.makeBucket(Bucket);
      const put = new PutBucketLifecycleConfigurationCommand({
        Bucket,
        LifecycleConfiguration: { Rules: [theirs] },
      });
      put.middlewareStack.add(
        (next) => async (args) => {
          const request = args.request as { body: string; headers: Record<string, string> };

          request.headers["content-md5"] = createHash("md5").update(request.body).digest("base64");
          return await next(args);
        },
        { step: "build", priority: "low" },
      );
      await client.send(put);
      const address = `s3://${Bucket}/site-a`;
      const plain = await nbdpull("init", address);
      expect(plain.stdout).toContain(`nbdpull init --lifecycle ${address}`);
      const made = await nbdpull("init", address, "--lifecycle", "--json");
      expect([made.code, made.stderr]).toEqual([0, ""]);
      expect(made.json()).toMatchObject({ lifecycle: "put" });
      const again = await nbdpull("init", address, "--lifecycle");
      expect(again.stdout).toContain("has a rule already");
      const { Rules = [] } = await client.send(new GetBucketLifecycleConfigurationCommand({ Bucket }));
      expect(Rules).toHaveLength(2);
      expect(Rules.find(({ ID }) => ID === theirs.ID)).toMatchObject(theirs);
      expect(Rules.find(({ ID }) => ID !== theirs.ID)).toMatchObject({
        Status: "Enabled",
        AbortIncompleteMultipartUpload: { DaysAfterInitiation: 7 },
      });
    }
    const rulesOf = async () =>
      (await client.send(new GetBucketLifecycleConfigurationCommand({ Bucket: "theirs" }))).Rules;
    const before = await rulesOf();
    const other = "<DelMarkerExpiration><Days>1</Days></DelMarkerExpiration></Rule>";
    const spoil = (fault: StoreFault, from = 1): void => {
      let asked = 0;
      line.fault = ({ method, url }) =>
        method === "GET" && url.includes("lifecycle") && ++asked >= from ? fault : undefined;
    };
    spoil({ rewrite: (text) => text.replace("</Rule>", other) });
    const strange = await nbdpull("init", "s3://theirs/site-b", "--lifecycle");
    expect(strange).toMatchObject({ code: 4 });
    expect(strange.stderr).toMatch(/E_S3_RULES: .*DelMarkerExpiration.*nothing was put/);
    spoil({ answer: 404, code: "NoSuchKey" });
    expect((await nbdpull("init", "s3://theirs/site-b", "--lifecycle")).code).not.toBe(0);
    expect(await rulesOf()).toEqual(before);
    // Whoever changes a rule of the same name.
    spoil({ rewrite: (text) => text.replace("<Days>30<", "<Days>31<") }, 2);
    const changed = await nbdpull("init", "s3://theirs/site-b", "--lifecycle");
    expect(changed).toMatchObject({ code: 4 });
    expect(changed.stderr).toMatch(/E_S3_RULES: .* are not what was put there.*"Days":30/);
    line.fault = ({ url }) => (url.includes("lifecycle") ? { answer: 403, code: "AccessDenied" } : undefined);
    const refused = await nbdpull("init", `s3://${BUCKET}/refused`, "--lifecycle");
    expect(refused).toMatchObject({ code: 4 });
    expect(refused.stderr).toContain("E_S3_ACCESS");
    expect((await nbdpull("init", join(folder, "no-store"), "--lifecycle")).code).toBe(2);
  });
});

/** Bytes of a range that was asked for. */
function startOf(range: string | undefined): number {
  return Number(/^bytes=(\d+)-/.exec(range ?? "")?.[1] ?? 0);
}

function lengthOf(range: string | undefined): number {
  const [, first = 0, last = -1] = /^bytes=(\d+)-(\d+)$/.exec(range ?? "") ?? [];
  return Number(last) - Number(first) + 1;
}
