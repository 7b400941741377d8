import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { takePoint } from "../../src/backup/take/take-point.js";
import { parseNbdUri } from "../../src/nbd/index.js";
import { attackNow, giveAway, NO_ATTACKER, secretIn } from "../support/attacker.js";
import { MemoryChain } from "../support/memory-chain.js";
import { describeUnless } from "../support/tools.js";

const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
let secret: Awaited<ReturnType<typeof secretIn>>;
let domain: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  chain.disk.write(0, Buffer.alloc(256 * 1024, 0x11));
  await chain.take();
  secret = await secretIn(chain.folder);
  domain = join(chain.repository.path, DOMAIN);
  await giveAway(domain, [chain.folder, chain.repository.path]);
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

/** Takes a point. The attack comes after its folder was made, and before its first image. */
async function takeUnder(attackWith: string): Promise<void> {
  chain.show();
  await takePoint({
    repository: chain.repository,
    domain: { name: DOMAIN, uuid: null },
    disks: [{ name: "vda", address: parseNbdUri(chain.uri) }],
    checkpoint: null,
    definition: {
      xml: "<domain><name>guest</name><uuid>7f2f3c7e-7c0e-4f0a-9f33-0c8a2d0e1f10</uuid><os/></domain>",
      host: undefined,
      notKept: [{ what: "its TPM", reason: "a test" }],
    },
    format: "qcow2",
    digests: "xxh64",
    sync: false,
    tool: "test",
    connect: {},
    onWarning: () => attackNow(`cd '${domain}'; partial=$(echo .*.partial); ${attackWith}`),
    confirm: async () => undefined,
  });
}

describeUnless(NO_ATTACKER, "the folder of a point that is being made", () => {
  it("gets all files when a link to a folder of root's takes its place, and the point fails", async () => {
    const swap = takeUnder(`mv "$partial" away; ln -s '${secret.folder}' "$partial"`);
    await expect(swap).rejects.toMatchObject({ code: "E_LINK" });
    expect(await readdir(secret.folder)).toEqual(["shadow"]);
    expect(await readFile(secret.file, "utf8")).toBe(secret.content);
    expect(await chain.repository.pointIds(DOMAIN)).toEqual(chain.points.map(({ id }) => id));
    expect((await readdir(domain)).filter((name) => name.endsWith(".partial"))).toEqual([]);
  });

  it("is no point when another folder takes its place", async () => {
    const swap = takeUnder(`mv "$partial" away; mkdir "$partial"; echo forged >"$partial/point.json"`);
    await expect(swap).rejects.toMatchObject({ code: "E_LINK" });
    expect(await chain.repository.pointIds(DOMAIN)).toEqual(chain.points.map(({ id }) => id));
  });
});
