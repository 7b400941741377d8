/**
 * The attack: the lock of a metrics file becomes a link, in the moment between its making and its renewal.
 */
import { mkdtemp, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { MetricsFile } from "../../bin/metrics-file.js";
import { lockFiles } from "../../src/backup/host/lock-fs.js";
import { attackMeanwhile, giveAway, NO_ATTACKER } from "../support/attacker.js";
import { describeUnless } from "../support/tools.js";

const LONG_AGO = new Date("2001-02-03T04:05:06Z");

describeUnless(NO_ATTACKER, "the lock of a metrics file in a folder of another user's", () => {
  it("lets nobody change the times of a file of root's", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-hostile-"));
    try {
      const victim = join(folder, "victim");
      await writeFile(victim, "root's own\n", { mode: 0o600 });
      await utimes(victim, LONG_AGO, LONG_AGO);
      const collector = await mkdtemp(join(folder, "collector-"));
      await giveAway(collector, [folder]);
      const path = join(collector, "web.prom");
      await using _ = attackMeanwhile(
        `exec perl -e 'open(F, ">$ARGV[1]"); until (rmdir $ARGV[0]) {} symlink $ARGV[2], $ARGV[0]; sleep 9' ${path}.lock ${collector}/ready ${victim}`,
      );
      await expect.poll(() => stat(join(collector, "ready")).catch(() => undefined)).toBeTruthy();
      // The library renews a lock at once only when it is the first of a process: this is the one.
      const file = MetricsFile.at(path).catch((error: unknown) => error);
      await sleep(200);
      expect((await stat(victim)).mtime).toEqual(LONG_AGO);
      // Without the race: what the library is given to renew locks with.
      const renewed = new Promise<NodeJS.ErrnoException | null>((resolve) =>
        lockFiles().fs.utimes(`${path}.lock`, new Date(), new Date(), resolve),
      );
      expect((await renewed)?.code).toMatch(/ELOOP|ENOTDIR|ENOENT/);
      expect((await stat(victim)).mtime).toEqual(LONG_AGO);
      await rm(`${path}.lock`, { force: true });
      await file;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
