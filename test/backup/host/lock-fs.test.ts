import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { lock } from "proper-lockfile";
import { expect, it } from "vitest";
import { lockFiles } from "../../../src/backup/host/lock-fs.js";

it("a lock that is released while it is being renewed is not renewed once more", async () => {
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-lock-"));
  try {
    const { fs, stopRenewing } = lockFiles();
    let isTaken = false;
    let looks = 0;
    const stat = fs["stat"] as (path: string, done: (...answer: unknown[]) => void) => void;
    // Slow, and then an error that is no "not found": what a closed descriptor's number can lead to.
    const slow = (path: string, done: (...answer: unknown[]) => void): void => {
      if (isTaken) {
        looks += 1;
        setTimeout(() => stat("/dev/null/lock", done), 200);
      } else stat(path, done);
    };
    const release = await lock("a lock", {
      ...{ lockfilePath: join(folder, "lock"), realpath: false, stale: 2000, update: 1000 },
      fs: { ...fs, stat: slow },
    });
    isTaken = true;
    await expect.poll(() => looks).toBe(1);
    stopRenewing();
    await release();
    // The library would throw in a callback, which ends the process (and this test).
    await sleep(400);
    expect(looks).toBe(1);
  } finally {
    await rm(folder, { recursive: true });
  }
});
