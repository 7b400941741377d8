import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, type Running, startNbdpull, untilOpen } from "../support/nbdpull.js";

const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
beforeEach(async () => {
  chain = await MemoryChain.start(512 * 1024);
  chain.show();
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

/** Waits until the process has started and waits for something: it sleeps, and hardly needs the processor. */
async function untilWaiting({ pid }: Running): Promise<void> {
  let before = 0;
  for (let still = 0; still < 5; await sleep(100)) {
    const fields = (await readFile(`/proc/${pid}/stat`, "utf8")).replace(/^.*\) /s, "").split(" ");
    const ticks = Number(fields[11]) + Number(fields[12]);
    still = fields[0] === "S" && ticks > 5 && ticks <= before + 1 ? still + 1 : 0;
    before = ticks;
  }
}

async function expectPrompt(run: Running, ready: Promise<void>): Promise<void> {
  await ready;
  const started = performance.now();
  run.kill("SIGINT");
  const ran = await finished(run);
  expect(ran.code).toBe(130);
  expect(ran.stderr).toContain("SIGINT");
  expect(performance.now() - started).toBeLessThan(15_000);
}

describe("Ctrl-C", () => {
  it("ends the verification of a large sparse raw image", async () => {
    await using large = await MemoryChain.start(64 * 1024 ** 3);
    await large.take({ format: "raw" });
    const verifying = startNbdpull(["verify", large.repository.path]);
    await expectPrompt(
      verifying,
      untilOpen(verifying, "vda.raw").then(() => sleep(500)),
    );
  });

  it("ends the wait for a job's XML on standard input", async () => {
    const child = startNbdpull([
      "attach",
      "--to",
      join(chain.folder, "new"),
      "--domain",
      DOMAIN,
      "--xml",
      "-",
    ]);
    await expectPrompt(child, untilWaiting(child));
    expect(await readdir(chain.folder)).not.toContain("new");
  });

  it("ends the wait for another writer of the domain", async () => {
    const xml = await chain.jobXml("vda");
    await chain.repository.withPendingPoint(DOMAIN, async () => {
      const run = startNbdpull(["attach", "--to", chain.repository.path, "--domain", DOMAIN, "--xml", xml]);
      await expectPrompt(run, untilWaiting(run));
    });
    expect(await readdir(chain.repository.path)).toEqual(["nbdpull.json"]);
  });
});
