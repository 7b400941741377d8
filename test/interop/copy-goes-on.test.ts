/** Copies that were killed inside a point, and what goes on with them: folders and Ceph. */
import { createHash } from "node:crypto";
import { open, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import {
  GetBucketLifecycleConfigurationCommand,
  ListMultipartUploadsCommand,
  ListPartsCommand,
  PutBucketLifecycleConfigurationCommand,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { afterAll, beforeAll, expect, it } from "vitest";
import { copyDomain } from "../../src/backup/copy/copy-points.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { StoreFault } from "../support/breaking-store.js";
import { ageLocks } from "../support/left-by-prune.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

describeWith(["radosgw", "ceph-mon", "ceph-osd", "qemu-img"], "a copy that was killed inside a point", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });
  let chain: MemoryChain;
  /** Of the requests that have written something: "METHOD url". */
  let written: string[] = [];
  /** The address of the point in a store from which it can be copied. */
  let source: string | undefined;

  /** A full point whose image has three parts. */
  beforeAll(async () => {
    chain = await MemoryChain.start(24 * MiB);
    chain.disk.write(0, Buffer.alloc(18 * MiB, "some of the guest's data; "));
    await chain.take({ full: true, digests: "sha256" });
  });
  afterAll(async () => {
    await chain?.[Symbol.asyncDispose]();
  });

  const id = (): string => chain.points[0]?.id ?? "";
  const original = (name: string): Promise<Buffer> => readFile(join(chain.repository.path, NAME, id(), name));
  const note = (): void => {
    written = [];
    lab.line.fault = ({ method, url }) => {
      if (method === "PUT") written.push(url);
      return undefined;
    };
  };
  const copyTo = async (to: string): Promise<string> => {
    const options = { from: chain.repository, to: await Repository.openOrCreate(to), domain: NAME };
    const { points } = await copyDomain({ ...options, signal: new AbortController().signal });
    expect(points.map(({ state }) => state)).toEqual(["copied"]);
    return to;
  };

  /** Kills a copy when a request has come that is never answered, and the store has so much of an image. */
  async function killAt(prefix: string, what: RegExp, has: number | "all"): Promise<void> {
    const to = lab.address(prefix);
    expect(await nbdpull("init", to)).toMatchObject({ code: 0 });
    let silent = 0;
    lab.line.fault = ({ method, url }) => {
      if (method !== "PUT" || !what.test(url)) return undefined;
      silent += 1;
      return "never answer";
    };
    const copying = startNbdpull(["copy", chain.repository.path, to]);
    await expect.poll(() => silent).toBeGreaterThan(0);
    await expect.poll(() => storedOf(prefix)).toBe(has);
    copying.kill("SIGKILL");
    await copying.ended;
    lab.line.fault = () => undefined;
  }

  /** How many parts the store has of the image that is being uploaded. */
  async function storedOf(prefix: string): Promise<number | "all"> {
    const Prefix = `${prefix}/${NAME}/${id()}/vda.qcow2`;
    if ((await lab.keys(Prefix)).length > 0) return "all";
    const { Uploads: [upload] = [] } = await lab.client.send(
      new ListMultipartUploadsCommand({ Bucket: lab.bucket, Prefix }),
    );
    if (!upload) return 0;
    const { Key, UploadId } = upload;
    const { Parts = [] } = await lab.client.send(new ListPartsCommand({ Bucket: lab.bucket, Key, UploadId }));
    return Parts.length;
  }

  async function expectStored(prefix: string): Promise<void> {
    for (const name of ["vda.qcow2", "vda.digests", "point.json"]) {
      const Key = `${prefix}/${NAME}/${id()}/${name}`;
      expect((await original(name)).equals(await lab.read(Key))).toBe(true);
    }
    expect(await lab.left(prefix)).toEqual([]);
  }

  it("sends only the parts that the store lacks", async () => {
    const to = lab.address("parts");
    await killAt("parts", /partNumber=2/, 2);
    note();
    await copyTo(to);
    const parts = written.filter((url) => url.includes("partNumber"));
    expect(parts).toEqual([expect.stringContaining("partNumber=2")]);
    await expectStored("parts");
  });

  it("sends no file again that is whole, and removes what does not belong there", async () => {
    const to = lab.address("whole");
    await killAt("whole", /vda\.digests/, "all");
    const foreign = `whole/${NAME}/${id()}/vdb.qcow2`;
    await lab.put(foreign, "?");
    note();
    await copyTo(to);
    expect(written.filter((url) => url.includes("vda.qcow2"))).toEqual([]);
    expect(await lab.keys(foreign)).toEqual([]);
    await expectStored("whole");
  });

  it("sends again what is not the same", async () => {
    const to = lab.address("other");
    await killAt("other", /partNumber=3/, 2);
    const { Uploads = [] } = await lab.client.send(
      new ListMultipartUploadsCommand({ Bucket: lab.bucket, Prefix: "other/" }),
    );
    const { Key, UploadId } = Uploads[0] ?? {};
    const Body = Buffer.alloc(8 * MiB, "another content");
    await lab.client.send(new UploadPartCommand({ Bucket: lab.bucket, Key, UploadId, PartNumber: 2, Body }));
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
    source ??= await copyTo(lab.address("source"));
    const from = source;
    const to = join(lab.folder, "to");
    expect(await nbdpull("init", to)).toMatchObject({ code: 0 });
    const partial = join(to, NAME, `.${id()}.partial`);
    // What comes after is never answered.
    lab.line.fault = ({ method, url, range }) =>
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
    lab.line.fault = ({ method, url, range }) => {
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
    const buckets: string[] = [];
    for (const theirs of [
      { ID: "theirs", Status: "Enabled", Filter: { Prefix: "logs/" }, Expiration: { Days: 30 } },
      { ID: "older form", Status: "Disabled", Prefix: "old/", Expiration: { Days: 3 } },
    ] as const) {
      const Bucket = await lab.makeBucket("theirs");
      buckets.push(Bucket);
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
      await lab.client.send(put);
      const address = `s3://${Bucket}/site-a`;
      const plain = await nbdpull("init", address);
      expect(plain.stdout).toContain(`nbdpull init --lifecycle ${address}`);
      const made = await nbdpull("init", address, "--lifecycle", "--json");
      expect([made.code, made.stderr]).toEqual([0, ""]);
      expect(made.json()).toMatchObject({ lifecycle: "put" });
      const again = await nbdpull("init", address, "--lifecycle");
      expect(again.stdout).toContain("has a rule already");
      const { Rules = [] } = await lab.client.send(new GetBucketLifecycleConfigurationCommand({ Bucket }));
      expect(Rules).toHaveLength(2);
      expect(Rules.find(({ ID }) => ID === theirs.ID)).toMatchObject(theirs);
      expect(Rules.find(({ ID }) => ID !== theirs.ID)).toMatchObject({
        Status: "Enabled",
        AbortIncompleteMultipartUpload: { DaysAfterInitiation: 7 },
      });
    }
    const [Bucket = ""] = buckets;
    const address = lab.address("site-b", Bucket);
    const rulesOf = async () =>
      (await lab.client.send(new GetBucketLifecycleConfigurationCommand({ Bucket }))).Rules;
    const before = await rulesOf();
    const other = "<DelMarkerExpiration><Days>1</Days></DelMarkerExpiration></Rule>";
    const spoil = (fault: StoreFault, from = 1): void => {
      let asked = 0;
      lab.line.fault = ({ method, url }) =>
        method === "GET" && url.includes("lifecycle") && ++asked >= from ? fault : undefined;
    };
    spoil({ rewrite: (text) => text.replace("</Rule>", other) });
    const strange = await nbdpull("init", address, "--lifecycle");
    expect(strange).toMatchObject({ code: 4 });
    expect(strange.stderr).toMatch(/E_S3_RULES: .*DelMarkerExpiration.*nothing was put/);
    spoil({ answer: 404, code: "NoSuchKey" });
    expect((await nbdpull("init", address, "--lifecycle")).code).not.toBe(0);
    expect(await rulesOf()).toEqual(before);
    // Whoever changes a rule of the same name.
    spoil({ rewrite: (text) => text.replace("<Days>30<", "<Days>31<") }, 2);
    const changed = await nbdpull("init", address, "--lifecycle");
    expect(changed).toMatchObject({ code: 4 });
    expect(changed.stderr).toMatch(/E_S3_RULES: .* are not what was put there.*"Days":30/);
    lab.line.fault = ({ url }) =>
      url.includes("lifecycle") ? { answer: 403, code: "AccessDenied" } : undefined;
    const refused = await nbdpull("init", lab.address("refused"), "--lifecycle");
    expect(refused).toMatchObject({ code: 4 });
    expect(refused.stderr).toContain("E_S3_ACCESS");
    expect((await nbdpull("init", join(lab.folder, "no-store"), "--lifecycle")).code).toBe(2);
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
