import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { INFO, OPTION, OPTION_ERROR, OPTION_REPLY } from "../../src/nbd/wire/constants.js";
import { MemoryChain } from "../support/memory-chain.js";
import { answeringUpTo, go, refuse } from "../support/mock-handshakes.js";
import { COMMON_FLAGS, infoExport, MockServer, optionReply, u16, u32 } from "../support/mock-server.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";

/** Clears the screen, sets the title, is a C1 CSI, turns text around, hides, and forges a line. */
const ATTACK = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202ekcab\u2066\u200b\u2028\x7f\rb\nnbdpull: all is well";

/** Everything that may not reach a terminal; the line ends are ours. */
const UNPRINTABLE = /[^\P{Cc}\n]|[\p{Cf}\u2028\u2029]/u;

function expectHarmless({ stdout, stderr }: Ran): void {
  expect(stdout).not.toMatch(UNPRINTABLE);
  expect(stderr).not.toMatch(UNPRINTABLE);
  expect(`${stdout}\n${stderr}`.split("\n")).not.toContain("nbdpull: all is well");
}

const text = (kind: number, value: string) => Buffer.concat([u16(kind), Buffer.from(value)]);

/** Calls its export what it likes. */
function namedByAnAttacker(): Promise<MockServer> {
  return MockServer.start(async (peer) => {
    await answeringUpTo(peer, OPTION.GO);
    const infos = [text(INFO.NAME, ATTACK), text(INFO.DESCRIPTION, ATTACK)];
    peer.send(...go(infoExport(1024 * 1024, COMMON_FLAGS), ...infos));
    await peer.gone();
  });
}

describe("text of an attacker's", () => {
  it("is escaped in what info says of an export, and JSON still holds the name itself", async () => {
    await using mock = await namedByAnAttacker();
    const ran = await nbdpull("info", mock.uri);
    expect(ran.code).toBe(0);
    expectHarmless(ran);
    expect(ran.stdout).toContain("a\\u{1b}[2J");
    expect(ran.stdout.split("\n")).toHaveLength(6);
    const asJson = await nbdpull("info", mock.uri, "--json");
    expect(asJson.stdout).not.toMatch(UNPRINTABLE);
    expect(asJson.json()).toMatchObject({ exports: [{ "export-name": ATTACK, description: ATTACK }] });
  });

  it("is escaped in the error that repeats a server's reason, with and without --verbose", async () => {
    await using mock = await MockServer.start(async (peer) => {
      await answeringUpTo(peer, OPTION.GO);
      peer.send(refuse(OPTION.GO, OPTION_ERROR.POLICY, ATTACK));
      await peer.gone();
    });
    for (const flags of [[], ["--verbose"]]) {
      const ran = await nbdpull("info", mock.uri, ...flags);
      expect(ran.code).toBe(1);
      expectHarmless(ran);
    }
  });

  it("is escaped where a server lists it", async () => {
    await using mock = await MockServer.start(async (peer, index) => {
      await answeringUpTo(peer, index === 0 ? OPTION.LIST : OPTION.GO);
      const name = Buffer.from(ATTACK);
      const listed = Buffer.concat([u32(name.length), name]);
      if (index === 0) {
        peer.send(optionReply(OPTION.LIST, OPTION_REPLY.SERVER, listed));
        peer.send(optionReply(OPTION.LIST, OPTION_REPLY.ACK));
      } else peer.send(...go(infoExport(512, COMMON_FLAGS)));
      await peer.gone();
    });
    const ran = await nbdpull("info", "--list", mock.uri);
    expect(ran.code).toBe(0);
    expectHarmless(ran);
  });

  it("is escaped in what points, verify and prune say of manifests and their faults", async () => {
    await using chain = await MemoryChain.start(1024 * 1024);
    const [first, second] = [(await chain.take()).manifest, (await chain.take()).manifest];
    const folder = join(chain.repository.path, MemoryChain.domain);
    const change = async (id: string, edit: (point: Record<string, unknown>) => object): Promise<void> => {
      const path = join(folder, id, "point.json");
      const point = JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
      await writeFile(path, JSON.stringify(edit(point)));
    };
    await change(first.id, (point) => ({
      ...point,
      checkpoint: { name: ATTACK, creationTime: null },
      disks: first.disks.map((disk) => ({ ...disk, reason: ATTACK })),
      notKept: [{ what: ATTACK, reason: ATTACK }],
    }));
    await change(second.id, (point) => ({ ...point, level: ATTACK, checkpoint: { [ATTACK]: 1 } }));
    const listed = await nbdpull("points", chain.repository.path);
    expect(listed.stdout).toContain("a\\u{1b}[2J");
    expect(listed.stderr.trimEnd().split("\n")).toHaveLength(1);
    expectHarmless(listed);
    expectHarmless(await nbdpull("verify", chain.repository.path));
    expectHarmless(await nbdpull("prune", chain.repository.path, "--keep-last", "1", "--dry-run"));
  });

  it("is escaped in the arguments that usage errors repeat", async () => {
    for (const args of [
      [`--${ATTACK}`],
      [ATTACK],
      ["points", `--${ATTACK}`],
      ["points", ATTACK],
      ["pull", "nbd://localhost", "x.raw", "--connections", ATTACK],
      ["pull", ATTACK, "x.raw"],
      ["map", "nbd+unix:///?socket=/nowhere", "--format", ATTACK],
    ]) {
      const ran = await nbdpull(...args);
      expect(ran.code).not.toBe(0);
      expectHarmless(ran);
      expectHarmless(await nbdpull(...args, "--json"));
    }
  });

  it("has no other way to the terminal than bin/terminal.ts", async () => {
    const writers: string[] = [];
    for (const name of await readdir("bin", { recursive: true })) {
      if (!name.endsWith(".ts")) continue;
      const source = await readFile(join("bin", name), "utf8");
      if (/\bconsole\.|\bstd(?:out|err)\.write\b/.test(source)) writers.push(name);
    }
    // A map is numbers and words of our own; it is too large for strings. A disk's bytes never go to a
    // terminal.
    expect(writers.sort()).toEqual(["result-stream.ts", "standard-output.ts"]);
    expect(await readFile("bin/terminal.ts", "utf8")).toMatch(/\bstream\.write\(/);
  });
});
