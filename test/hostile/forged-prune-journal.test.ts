import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { attack, giveAway, NO_ATTACKER, secretIn } from "../support/attacker.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { describeUnless } from "../support/tools.js";

const DOMAIN = MemoryChain.domain;
const NONE = "20200101T000000.000Z";
const NEWER = "20990101T000000.000Z";

let chain: MemoryChain;
let secret: Awaited<ReturnType<typeof secretIn>>;
let domain: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  chain.disk.write(0, Buffer.alloc(256 * 1024, 0x11));
  await chain.take({ format: "raw" });
  chain.disk.write(64 * 1024, Buffer.alloc(512, 0x22));
  await chain.take({ format: "raw" });
  secret = await secretIn(chain.folder);
  domain = join(chain.repository.path, DOMAIN);
  await giveAway(domain, [chain.folder, chain.repository.path]);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const first = (): string => chain.points[0]?.id ?? "";

/** A patch that writes into the first bytes of an image. */
function patch(): Buffer {
  const bytes = Buffer.from("attacker::0:0::/:/bin/sh\n");
  const entry = (offset: number, length: number): Buffer => {
    const head = Buffer.alloc(16);
    head.writeDoubleLE(offset, 0);
    head.writeDoubleLE(length, 8);
    return head;
  };
  return Buffer.concat([entry(0, bytes.length), bytes, entry(1024 * 1024, 0)]);
}

/** A list of one copy, from the newest image to the beginning of the changed one. */
function copies(): Buffer {
  const list = Buffer.alloc(32);
  for (const [i, value] of [0, 0, 0, 100].entries()) list.writeDoubleLE(value, i * 8);
  return list;
}

async function forge(journal: object, files: Readonly<Record<string, Buffer>> = {}): Promise<void> {
  await attack(`mkdir '${domain}/.prune'; cat >'${domain}/.prune/journal.json'`, JSON.stringify(journal));
  for (const [name, bytes] of Object.entries(files)) {
    await attack(`base64 -d >'${domain}/.prune/${name}'`, bytes.toString("base64"));
  }
}

const journalOf = (phase: string, merge: object, drop: readonly string[]): object => ({
  format: "nbdpull-prune",
  version: 2,
  phase,
  drop,
  merges: [{ disk: "vda", digests: null, map: null, stale: [], ...merge }],
  sync: false,
});

async function expectRefused(ran: Ran, names = "journal.json"): Promise<void> {
  expect(await readFile(secret.file, "utf8")).toBe(secret.content);
  expect((await stat(secret.file)).uid).toBe(0);
  expect(await readdir(secret.folder)).toEqual(["shadow"]);
  expect(ran.code).toBe(3);
  expect(ran.stderr).toContain(names);
  for (const { id } of chain.points) expect(await readdir(domain)).toContain(id);
}

const prune = (): Promise<Ran> =>
  nbdpull("prune", chain.repository.path, DOMAIN, "--keep-last", "1", "--trust-repository");

describeUnless(NO_ATTACKER, "a journal that somebody has forged beside a link to a folder of root's", () => {
  it.each(["evil", NEWER])("does not let `points` write a patch there (%s)", async (link) => {
    await attack(`ln -s '${secret.folder}' '${domain}/${link}'`);
    const merge = {
      child: link,
      dropped: [first()],
      base: { point: link, file: "shadow", bytes: 0 },
      file: "shadow",
    };
    await forge(journalOf("publish", merge, [first()]), { [`${link}.vda.patch`]: patch() });
    await expectRefused(await nbdpull("points", chain.repository.path), link === "evil" ? undefined : link);
  });

  it.each(["evil", NEWER])("does not let `prune` truncate a file there (%s)", async (link) => {
    await attack(`ln -s '${secret.folder}' '${domain}/${link}'`);
    const merge = {
      child: link,
      dropped: [first()],
      base: { point: link, file: "shadow", bytes: 3 },
      file: "shadow",
    };
    await forge(journalOf("merge", merge, [first()]));
    await expectRefused(await prune(), link === "evil" ? undefined : link);
  });

  it("does not let `prune` overwrite a file there", async () => {
    const second = chain.points[1]?.id;
    await attack(`ln -s '${secret.folder}' '${domain}/${NEWER}'`);
    const merge = {
      child: second,
      dropped: [first()],
      base: { point: NEWER, file: "shadow", bytes: 0 },
      file: "vda.raw",
    };
    const files = { [`${second}.vda.overwrites`]: copies() };
    await forge(journalOf("overwrite", merge, [first()]), files);
    await expectRefused(await prune());
  });

  it("does not let `points` move a file of the attacker's there", async () => {
    await attack(`ln -s '${secret.folder}' '${domain}/${NEWER}'`);
    const merge = { child: NEWER, dropped: [first()], base: null, file: "authorized_keys" };
    await forge(journalOf("publish", merge, [first()]), { [`${NEWER}.vda.image`]: Buffer.from("a key") });
    await expectRefused(await nbdpull("points", chain.repository.path), NEWER);
  });

  it("does not let `points` remove a file there", async () => {
    await attack(`ln -s '${secret.folder}' '${domain}/${NEWER}'`);
    const merge = { child: NEWER, dropped: [first()], base: null, file: "x", stale: ["shadow"] };
    await forge(journalOf("publish", merge, [first()]));
    await expectRefused(await nbdpull("points", chain.repository.path), NEWER);
  });

  it("is not followed if its own folder is a link, or its file", async () => {
    const merge = { child: NEWER, dropped: [first()], base: null, file: "x" };
    await forge(journalOf("publish", merge, [first()]));
    await attack(`mv '${domain}/.prune' '${domain}/moved'; ln -s moved '${domain}/.prune'`);
    await expectRefused(await nbdpull("points", chain.repository.path), ".prune");
    await attack(`rm '${domain}/.prune'; mv '${domain}/moved' '${domain}/.prune'; cd '${domain}/.prune'
      mv journal.json other; ln -s other journal.json`);
    await expectRefused(await nbdpull("points", chain.repository.path));
  });
});

describeUnless(NO_ATTACKER, "a journal that names real points", () => {
  it.each([
    ["an unknown phase", { phase: "delete" }],
    ["no version that is known", { version: 3 }],
    ["a point that is not there", { drop: [NONE] }],
    ["a name in place of a point", { drop: ["../../etc"] }],
  ])("changes nothing with %s", async (_, wrong) => {
    const [first, second] = chain.points.map(({ id }) => id);
    const merge = { child: second, dropped: [first], base: null, file: "vda.raw" };
    const journal = { ...journalOf("merge", merge, [first ?? ""]), merges: [], ...wrong };
    await forge(journal);
    await expectRefused(await prune());
    await attack(`rm -r '${domain}/.prune'`);
    expect((await nbdpull("verify", chain.repository.path)).code).toBe(0);
  });

  it("changes nothing with a patch that leaves the image, or one that goes on behind its end", async () => {
    const [first, second] = chain.points.map(({ id }) => id);
    const image = join(domain, second ?? "", "vda.raw");
    const before = await readFile(image);
    const merge = {
      child: second,
      dropped: [first],
      base: { point: second, file: "vda.raw", bytes: before.length },
      file: "vda.raw",
    };
    const far = Buffer.from(patch());
    far.writeDoubleLE(2 ** 40, 0);
    for (const forged of [far, Buffer.concat([patch(), patch()]), patch().subarray(0, 30)]) {
      await forge(journalOf("publish", merge, [first ?? ""]), { [`${second}.vda.patch`]: forged });
      await expectRefused(await nbdpull("points", chain.repository.path), "patch");
      expect((await readFile(image)).equals(before)).toBe(true);
      await attack(`rm -r '${domain}/.prune'`);
    }
  });
});
