/** What a copy does at the same time: requests to a store far away, and domains. The store is Ceph. */
import { cp } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { CopyResult } from "../../src/backup/copy/copy-points.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;

describeWith(["radosgw", "ceph-mon", "ceph-osd", "qemu-img"], "what a copy does at the same time", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });
  let chain: MemoryChain;

  /** Two domains, each with a full point of some large requests. */
  beforeAll(async () => {
    chain = await MemoryChain.start(24 * MiB);
    chain.disk.write(0, Buffer.alloc(18 * MiB, "some of the guest's data; "));
    await chain.take({ full: true, digests: "sha256" });
    const { path } = chain.repository;
    await cp(join(path, NAME), join(path, "other"), { recursive: true });
  });
  afterAll(async () => {
    await chain?.[Symbol.asyncDispose]();
  });

  async function copiedToStore(): Promise<string> {
    const to = lab.address("first");
    expect(await nbdpull("copy", chain.repository.path, to, "--create")).toMatchObject({ code: 0 });
    return to;
  }

  /** Starts a copy to a folder of which no read of an image is answered, and waits for these reads. */
  async function readsAtOnce(from: string, wanted: number, ...more: readonly string[]): Promise<string[]> {
    const asked: string[] = [];
    lab.line.fault = ({ method, url }) => {
      if (method !== "GET" || !url.includes("/vda.qcow2")) return undefined;
      asked.push(url);
      return "never answer";
    };
    const running = startNbdpull(["copy", from, join(lab.folder, "to"), "--create", ...more]);
    await expect.poll(() => asked.length, { timeout: 20_000 }).toBe(wanted);
    running.kill("SIGKILL");
    await running.ended;
    return asked;
  }

  it("has several requests for an image under way, and works on two domains", async () => {
    const asked = await readsAtOnce(await copiedToStore(), 6);
    expect(new Set(asked.map((url) => url.split("/")[3]))).toEqual(new Set([NAME, "other"]));
  });

  it("works on one domain after the other if told so", async () => {
    const asked = await readsAtOnce(await copiedToStore(), 3, "--jobs", "1");
    expect(new Set(asked.map((url) => url.split("/")[3]))).toEqual(new Set([NAME]));
  });

  it("tells of one domain that fails beside the others", async () => {
    const from = await copiedToStore();
    lab.line.fault = ({ method, url }) =>
      method === "GET" && url.includes(`/${NAME}/`) && url.includes("/vda.qcow2")
        ? { answer: 403, code: "AccessDenied" }
        : undefined;
    const ran = await nbdpull("copy", from, join(lab.folder, "to"), "--create", "--json");
    expect(ran.code).not.toBe(0);
    const { domains } = ran.json() as {
      domains: (CopyResult | { domain: string; error: { code: string } })[];
    };
    expect(domains.map(({ domain }) => domain)).toEqual([NAME, "other"].sort());
    const failed = domains.filter((each) => "error" in each);
    expect(failed.map(({ domain }) => domain)).toEqual([NAME]);
    expect(await nbdpull("verify", join(lab.folder, "to"), "other")).toMatchObject({ code: 0 });
  });

  it("knows a repository by its endpoint, however its address is written", async () => {
    const to = await copiedToStore();
    const same = await nbdpull("copy", to, `${to}/?endpoint=${lab.line.endpoint}&region=us-east-1`);
    expect(same).toMatchObject({ code: 2, stderr: expect.stringContaining("are the same repository") });
  });
});
