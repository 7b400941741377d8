/** Messages that say which options to leave out name those that were given, and no others. */
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";

let chain: MemoryChain;
beforeAll(async () => {
  // Its points have no definition, as nobody has asked libvirt for one.
  chain = await MemoryChain.start(1024 ** 2);
  await chain.take();
});
afterAll(async () => {
  await chain[Symbol.asyncDispose]();
});

it.each([
  [
    ["--xml", "web.xml"],
    "E_NO_DEFINITION",
    "by nbdpull restore without --xml, for a domain that is defined by hand",
  ],
  [
    ["--define"],
    "E_NO_DEFINITION",
    "by nbdpull restore without --define, for a domain that is defined by hand",
  ],
  [
    ["--define=web2", "--xml", "web.xml"],
    "E_NO_DEFINITION",
    "by nbdpull restore without --define and --xml, for a domain that is defined by hand",
  ],
  [
    ["--define", "--keep-identity", "--adapt"],
    "E_NO_DEFINITION",
    "by nbdpull restore without --define, --keep-identity and --adapt, for a domain that is defined by hand",
  ],
  [["--salvage", "--define"], "E_USAGE", "of disks alone: restore without --define"],
  [["--salvage", "--xml", "web.xml"], "E_USAGE", "of disks alone: restore without --xml"],
  [["--no-start"], "E_USAGE", "E_USAGE: --no-start is about --live: give that too"],
  [
    ["--resume", "--cache-size", "1G"],
    "E_USAGE",
    "E_USAGE: --resume and --cache-size are about --live: give that too",
  ],
  [["--live", "--define", "--xml", "web.xml"], "E_USAGE", "on qcow2 files: leave out --xml"],
  [["--live", "--define", "--format", "raw"], "E_USAGE", "on qcow2 files: leave out --format raw"],
  [["--live"], "E_USAGE", "on qcow2 files: give --define (with --keep-identity for one that is gone)"],
])("restore %j is %s", async (options, code, said) => {
  const to = join(chain.folder, "restored");
  const ran = await nbdpull("restore", chain.repository.path, "--to", to, ...options);
  expect(ran.stderr).toContain(`${code}: `);
  expect(ran.stderr.slice(-said.length)).toBe(said);
});

it.each([
  [["--at", "latest"], "leave --at out"],
  [["--live"], "leave --live out"],
  [["--at", "latest", "--live"], "leave --at and --live out"],
])("so does verify --share 2 %j", async (options, said) => {
  const ran = await nbdpull("verify", chain.repository.path, "--share", "2", ...options);
  expect([ran.code, ran.stderr]).toEqual([2, expect.stringContaining(said)]);
});
