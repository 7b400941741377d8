/** Object stores as places for repositories: made there, known again, warned of and refused. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CreateMultipartUploadCommand, PutBucketVersioningCommand } from "@aws-sdk/client-s3";
import { afterAll, beforeAll, expect, it } from "vitest";
import { OTHER } from "../../bench/ceph.js";
import {
  CheckpointRecord,
  type RecordedRepository,
  recordedRepositories,
  whereItWas,
} from "../../src/backup/guest/checkpoint-record.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { chainOfFour } from "../support/chain-of-four.js";
import type { MemoryChain } from "../support/memory-chain.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "a repository in an object store", () => {
  let lab: StoreLab;
  withStoreLab((started) => {
    lab = started;
  });
  let chain: MemoryChain;

  beforeAll(async () => {
    chain = await chainOfFour();
  });
  afterAll(async () => {
    await chain?.[Symbol.asyncDispose]();
  });

  const stored = (prefix: string): Promise<string> => lab.upload(chain.repository.path, prefix);

  it("is made, and made only once and only where nothing is", async () => {
    const address = lab.address("made/here");
    const made = await nbdpull("init", address, "--json");
    expect(made).toMatchObject({ code: 0 });
    expect(made.json()).toMatchObject({ path: address, conditionalCreate: true, conditionalReplace: true });
    expect(await lab.keys("made/")).toEqual(["made/here/nbdpull.json"]);
    const marker = JSON.parse((await lab.read("made/here/nbdpull.json")).toString()) as { id: string };
    expect(made.json()).toMatchObject({ id: marker.id });
    expect(marker).toMatchObject({
      format: "nbdpull-repository",
      version: 1,
      store: { conditionalCreate: true },
    });
    expect(await nbdpull("points", address)).toMatchObject({ code: 0, stdout: "no restore points yet" });
    const again = await nbdpull("init", address);
    expect(again).toMatchObject({ code: 4 });
    expect(again.stderr).toContain(marker.id);
    await lab.put("full/of/other/things", "x");
    expect(await nbdpull("init", lab.address("full"))).toMatchObject({ code: 2 });
    expect(await lab.keys("full/")).toEqual(["full/of/other/things"]);
  });

  it("is known to the record of its checkpoints by its endpoint too: elsewhere it is a copy", async () => {
    const address = lab.address("recorded");
    const stateFolder = join(lab.folder, "state");
    const recordOf = async (repository: Repository): Promise<CheckpointRecord> =>
      await CheckpointRecord.open({
        ...{ stateFolder, repository, domainUuid: "f00dcafe-0000-4000-8000-000000000000", moved: false },
        found: async () => [],
      });
    const repository = await Repository.openOrCreate(address);
    await recordOf(repository);
    await recordOf(await Repository.open(`${address}?endpoint=${lab.line.endpoint}/&region=eu`));
    const copy = await Repository.open(`${address}?endpoint=${lab.store.endpoint}`);
    await expect(recordOf(copy)).rejects.toMatchObject({
      code: "E_REPOSITORY_MOVED",
      message: expect.stringContaining(lab.line.endpoint),
    });
    // Whoever retires a repository may have another environment than its backups.
    const [recorded] = await recordedRepositories(stateFolder);
    process.env["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1";
    try {
      expect((await whereItWas(recorded as RecordedRepository))?.id).toBe(repository.id);
    } finally {
      process.env["AWS_ENDPOINT_URL"] = lab.line.endpoint;
    }
  });

  it("is made once though two make it, and what a killed init has tried is removed", async () => {
    const address = lab.address("twice");
    const theirs = "2b1f9c0e-6a53-4c39-9a3e-5d1f6f0a7c11";
    const marker = JSON.stringify({ format: "nbdpull-repository", version: 1, id: theirs });
    let theirPut: Promise<void> | undefined;
    lab.line.fault = ({ method, url }) => {
      if (theirPut || method !== "PUT" || !url.includes("nbdpull.json")) return undefined;
      theirPut = lab.put("twice/nbdpull.json", marker);
      return "hang up";
    };
    const lost = await nbdpull("init", address);
    expect(lost).toMatchObject({ code: 4 });
    expect(lost.stderr).toContain(theirs);
    expect((await lab.read("twice/nbdpull.json")).toString()).toBe(marker);

    const Key = "again/.probe-killed/parts";
    await lab.put("again/.probe-killed/small", "first");
    await lab.client.send(new CreateMultipartUploadCommand({ Bucket: lab.bucket, Key }));
    expect(await nbdpull("init", lab.address("again"))).toMatchObject({ code: 0 });
    expect(await lab.keys("again/")).toEqual(["again/nbdpull.json"]);
    expect(await lab.left("again")).toEqual([]);
  });

  it("warns where the store takes no notice of conditions", async () => {
    lab.line.fault = () => "ignore conditions";
    const made = await nbdpull("init", lab.address("unconditional"));
    expect(made).toMatchObject({ code: 0 });
    expect(made.stderr).toContain("only one host");
    const doctor = startNbdpull(["doctor", "--to", lab.address("unconditional"), "--json"]);
    expect((await finished(doctor)).json()).toContainEqual(
      expect.objectContaining({ status: "warn", cause: expect.stringContaining("only one host") }),
    );
  });

  it.each([
    ["copy", async (to: string) => ["copy", chain.repository.path, to, "--create"]],
    [
      "import",
      async (to: string) => {
        const image = join(lab.folder, "vda.raw");
        await writeFile(image, Buffer.alloc(MiB, 7));
        return ["import", image, "--domain", "guest", "--disk", "vda", "--to", to, "--create"];
      },
    ],
  ])("that %s makes is told of once where the store takes no notice of conditions", async (_, words) => {
    lab.line.fault = () => "ignore conditions";
    const ran = await nbdpull(...(await words(lab.address("made"))));
    expect(ran, ran.stderr).toMatchObject({ code: 0 });
    expect(ran.stderr.match(/only one host/g)).toHaveLength(1);
  });

  it.each(["copied elsewhere", "versions were switched on"])(
    "is told of by whoever writes there since %s",
    async (change) => {
      const address = await stored("changed");
      const marker = JSON.parse((await lab.read("changed/nbdpull.json")).toString()) as object;
      const store = { conditionalCreate: true, conditionalReplace: true };
      await lab.put("changed/nbdpull.json", JSON.stringify({ ...marker, store }));
      if (change === "copied elsewhere") lab.line.fault = () => "ignore conditions";
      else {
        const VersioningConfiguration = { Status: "Enabled" } as const;
        await lab.client.send(
          new PutBucketVersioningCommand({ Bucket: lab.bucket, VersioningConfiguration }),
        );
      }
      const ran = await nbdpull("prune", address, "--keep-last", "1");
      expect(ran, ran.stderr).toMatchObject({ code: 0 });
      expect(ran.stderr.split("takes none now"), ran.stderr + ran.stdout).toHaveLength(2);
      expect(ran.stdout).toContain("can't replace on condition");
    },
  );

  it("is told of once to whoever opens it for one domain after the other", async () => {
    const address = await stored("often");
    lab.line.fault = () => "ignore conditions";
    const { signal } = new AbortController();
    const told: string[] = [];
    for (const domain of ["one", "two"]) {
      const onWarning = (message: string): void => void told.push(message);
      const repository = await Repository.open(address, { signal, onWarning });
      await repository.writingInStore(domain, async () => undefined);
    }
    expect(told).toEqual([expect.stringContaining("only one host")]);
  });

  it("that another program has copied there is tried with little, which leaves nothing", async () => {
    const address = await stored("foreign");
    lab.line.fault = () => "ignore conditions";
    lab.line.seen.length = 0;
    const ran = await nbdpull("prune", address, "--keep-last", "4");
    expect(ran, ran.stderr).toMatchObject({ code: 0 });
    expect(ran.stderr.match(/only one host/g)).toHaveLength(1);
    expect(lab.line.seen.filter((each) => each.startsWith("POST"))).toEqual([]);
    expect(await lab.keys("foreign/.probe-")).toEqual([]);
  });

  const COMMANDS = {
    points: async (address: string) => ["points", address],
    init: async (address: string) => ["init", address],
    "import --create": async (address: string) => {
      const image = join(lab.folder, "vda.raw");
      await writeFile(image, Buffer.alloc(MiB, 7));
      return ["import", image, "--domain", "guest", "--disk", "vda", "--to", address, "--create"];
    },
  };
  const region = { answer: 301, code: "PermanentRedirect" } as const;
  it.each(
    Object.entries(COMMANDS).flatMap(([name, words]) =>
      (
        [
          ["a bucket that is not there", "nobodys-bucket", {}, undefined, /E_S3_BUCKET.*there is no bucket/],
          ["another's bucket", "others", {}, undefined, /E_S3_ACCESS.*somebody else's bucket/],
          [
            "a wrong key",
            "",
            { AWS_SECRET_ACCESS_KEY: "wrong" },
            undefined,
            /E_S3_ACCESS.*secret key is not/,
          ],
          ["another region", "", {}, region, /E_S3_REGION.*\?region=/],
        ] as const
      ).map(([what, ...rest]) => [name, what, words, ...rest] as const),
    ),
  )("%s is refused with %s, in one line that says which", async (_, __, words, bucket, env, fault, said) => {
    if (bucket === "others") await lab.store.makeBucket("others", OTHER).catch(() => undefined);
    const address = lab.address("refused", bucket === "" ? lab.bucket : bucket);
    lab.line.fault = () => fault;
    Object.assign(process.env, env);
    const ran = await nbdpull(...(await words(address)));
    Object.assign(process.env, lab.environment);
    lab.line.fault = () => undefined;
    expect(ran).toMatchObject({ code: 4, stderr: expect.stringMatching(said) });
    expect(ran.stderr.split("\n").filter((line) => line.startsWith("nbdpull:"))).toHaveLength(1);
    expect(await lab.keys("")).toEqual([]);
  });

  it("is refused where there is none, in one line", async () => {
    const ran = await nbdpull("points", lab.address("nothing-here"));
    expect(ran).toMatchObject({ code: 4, stderr: expect.stringContaining("E_NO_REPOSITORY") });
    expect(ran.stderr.trim().split("\n")).toHaveLength(1);
  });
});
