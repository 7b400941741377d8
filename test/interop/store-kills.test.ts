/**
 * Backups of a job, copies and prunes in Ceph, killed at random moments: `NBDPULL_KILL_ROUNDS=50` makes it a
 * long test, of so many kills of each; `NBDPULL_KILL_LOG` names a file for the figures.
 */
import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";
import { startAll } from "../support/start-all.js";
import { StoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const NAME = MemoryChain.domain;
const { NBDPULL_KILL_ROUNDS = "1", NBDPULL_KILL_LOG } = process.env;
/** Each of them kills a backup, a copy and a prune. */
const ROUNDS = Number(NBDPULL_KILL_ROUNDS);
/** What was removed stays in the store's memory for two hours, so another one begins after so many rounds. */
const ROUNDS_OF_STORE = 10;
/** After something was begun that a kill leaves half. */
const LATEST_KILL_MS = 1_000;
const LATEST_PRUNE_KILL_MS = 200;

describeWith(["radosgw", "ceph-mon", "ceph-osd"], "what is killed while it writes to an object store", () => {
  let lab: StoreLab;
  let chain: MemoryChain;

  /** Three chains of a full point and an increment. */
  beforeAll(async () => {
    [lab, chain] = await startAll(StoreLab.start(), MemoryChain.start(24 * MiB));
    for (const round of [1, 2, 3]) {
      chain.disk.write(round * MiB, Buffer.alloc(18 * MiB, `round ${round}`));
      await chain.take({ full: true, digests: "sha256", granularity: 4096 });
      chain.disk.write(round * 3 * MiB, Buffer.alloc(MiB, `more of ${round}`));
      await chain.take({ digests: "sha256", granularity: 4096 });
    }
  });
  afterAll(async () => {
    await chain?.[Symbol.asyncDispose]();
    await lab?.[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    await lab.begin();
  });

  async function newStore(): Promise<void> {
    await lab[Symbol.asyncDispose]();
    lab = await StoreLab.start();
  }

  it("loses no point, and nothing is left of it after the next run", async () => {
    const halves = { backup: 0, copy: 0, prune: 0 };
    const job = await chain.jobXml("vda");
    for (let round = 0; round < ROUNDS; round += 1) {
      if (round > 0 && round % ROUNDS_OF_STORE === 0) await newStore();
      const prefix = `round-${round}`;
      const address = lab.address(prefix);
      expect(await nbdpull("init", address)).toMatchObject({ code: 0 });
      const copy = ["copy", chain.repository.path, address];
      const backup = ["attach", "--domain", NAME, "--xml", job, "--to", address];
      const prune = ["prune", address, "--keep-last", "1"];
      const steps = [
        { kind: "copy", args: copy, atLeast: 0, atMost: 6, after: 6, latest: LATEST_KILL_MS },
        { kind: "backup", args: backup, atLeast: 6, atMost: 7, after: 7, latest: LATEST_KILL_MS },
        { kind: "prune", args: prune, atLeast: 1, atMost: 8, after: 1, latest: LATEST_PRUNE_KILL_MS },
      ] as const;
      for (const { kind, args, atLeast, atMost, after, latest } of steps) {
        // The first one at once: in a single round, none may come early enough by chance.
        if (await leavesHalf(args, prefix, round === 0 ? 0 : latest)) halves[kind] += 1;
        const now = await soundPoints(address);
        expect(now, `after the kill of a ${kind}`).toBeGreaterThanOrEqual(atLeast);
        expect(now).toBeLessThanOrEqual(atMost);
        expect(await nbdpull(...args)).toMatchObject({ code: 0 });
        expect(await lab.left(prefix)).toEqual([]);
        // A backup may have been committed just before it was killed.
        const whole = await soundPoints(address);
        expect([after, kind === "backup" ? now + 1 : after]).toContain(whole);
      }
      const told = `${round + 1} kills of each; so many left something half: ${JSON.stringify(halves)}\n`;
      if (NBDPULL_KILL_LOG) await writeFile(NBDPULL_KILL_LOG, told);
    }
    // Otherwise nothing was tried. A prune may be over within the 20 ms of a look, so one may come too late.
    expect(halves.copy + halves.backup).toBeGreaterThan(0);
    if (ROUNDS >= 10) expect(Math.min(...Object.values(halves))).toBeGreaterThan(0);
  }, 3_600_000);

  /** Kills a run that has begun to change something. @returns whether it had not ended with that */
  async function leavesHalf(
    args: readonly string[],
    prefix: string,
    latest = LATEST_KILL_MS,
  ): Promise<boolean> {
    const half = async (): Promise<string> => (await lab.half(prefix)).join(" ");
    // What an earlier one has left is removed first.
    const earlier = await half();
    const run = startNbdpull([...args]);
    const ended = run.ended.then(() => true);
    while ((await half()) === earlier) if (await Promise.race([ended, sleep(20, false)])) break;
    await Promise.race([ended, sleep(Math.random() * latest)]);
    run.kill("SIGKILL");
    await run.ended;
    return (await half()) !== "";
  }
});

/** How many points there are. All of them are whole. */
async function soundPoints(address: string): Promise<number> {
  expect(await nbdpull("verify", address)).toMatchObject({ code: 0 });
  return ((await nbdpull("points", address, "--json")).json() as unknown[]).length;
}
