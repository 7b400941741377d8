/**
 * Kills backups at random moments, also while they take over what another has left. `NBDPULL_KILL_ROUNDS=50`
 * makes it a long test; `NBDPULL_KILL_LOG` names a file that gets a line for each round.
 */
import { appendFile, readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { type BackupJson, BackupLab } from "../support/backup-lab.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { startNbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;
const SIZE = 160 * MiB;
/** What a run may have read in vain when it was killed. */
const SPARE = 64 * MiB;
const { NBDPULL_KILL_ROUNDS = "3", NBDPULL_KILL_LOG } = process.env;
const ROUNDS = Number(NBDPULL_KILL_ROUNDS);
/** At most, until one goes on with a point. */
const MOST_ROUNDS = 5 * ROUNDS;
const MANNERS = [["--format", "raw"], [], ["--compress"]] as const;
const KILLS = 3;
/** At the rate below a run takes little more. */
const LATEST_KILL_MS = 3000;
const RATE = "40M";

interface Point extends BackupJson {
  readonly resumed: {
    readonly times: number;
    readonly keptBytes: number;
    readonly readBytes: number;
  } | null;
  readonly disks: readonly (BackupJson["disks"][number] & { readonly dataBytes: number })[];
}

await describeWithLibvirt("a backup that is killed again and again at random moments", () => {
  it("goes on with its point, reads little twice, and leaves nothing", async () => {
    await using guest = await BackupLab.start({ sizes: { vda: SIZE } });
    const home = join(guest.repo, guest.lab.domain);
    const mirror = Buffer.alloc(SIZE);
    const put = async (at: number, length: number, value: number): Promise<void> => {
      await guest.lab.write("vda", at * MiB, length * MiB, value);
      mirror.fill(value, at * MiB, (at + length) * MiB);
    };
    for (let at = 0; at < 150; at += 10) await put(at, 9, 1 + at);
    const partial = async (): Promise<string | undefined> =>
      (await guest.beside()).find((name) => name.endsWith(".partial"));
    let resumed = 0;
    // Some runs end before they are killed, or have no journal yet.
    for (let round = 0; round < ROUNDS || (resumed === 0 && round < MOST_ROUNDS); round += 1) {
      const manner = MANNERS[round % MANNERS.length] ?? [];
      const options = ["--level", "full", ...manner];
      let frozen = Buffer.alloc(0);
      let begun: string | undefined;
      let storedBytes = 0;
      for (let kill = 0; kill < KILLS; kill += 1) {
        const before = Buffer.from(mirror);
        const run = startNbdpull(guest.arguments("--limit-rate", RATE, ...options));
        const ended = run.ended.then(() => true);
        while ((await partial()) === undefined && !(await Promise.race([ended, sleep(20, false)])));
        await Promise.race([ended, sleep(Math.random() * LATEST_KILL_MS)]);
        run.kill("SIGKILL");
        await run.ended;
        await removeMarks(home);
        const left = await partial();
        if (left !== begun) [begun, frozen] = [left, before];
        storedBytes = left === undefined ? 0 : await bytesOfImages(join(home, left));
        await put((round * 7 + kill * 31) % 130, 13, 1 + ((round * 13 + kill) % 250));
      }
      const point = (await guest.take(...options)) as Point;
      await guest.expectNothingLeft();
      let told = "begun anew";
      if (point.resumed) {
        resumed += 1;
        expect(`.${point.id}.partial`).toBe(begun);
        const copy = join(guest.folder, "frozen.raw");
        await writeFile(copy, frozen);
        await guest.expectPoint(point.id, { vda: copy });
        const dataBytes = point.disks.reduce((sum, disk) => sum + disk.dataBytes, 0);
        const missing = dataBytes - storedBytes;
        const { keptBytes, readBytes } = point.resumed;
        // What compressed clusters that are there already stand for can't be told from their sizes.
        if (!options.includes("--compress")) expect(readBytes).toBeLessThan(missing + SPARE);
        expect(keptBytes).toBeGreaterThan(0);
        expect(readBytes).toBeLessThan(dataBytes - keptBytes + SPARE);
        expect(keptBytes + readBytes).toBeGreaterThanOrEqual(dataBytes);
        told = `${JSON.stringify(point.resumed)}, ${missing} missing`;
      } else if (begun !== undefined) {
        told += `, ${JSON.stringify(point.warnings)}`;
        await guest.expectPoint(point.id, await guest.copyNow());
      }
      if (NBDPULL_KILL_LOG !== undefined) {
        await appendFile(NBDPULL_KILL_LOG, `${round} ${manner.join(" ")}: ${told}\n`);
      }
      for (const name of await readdir(home)) await rm(join(home, name), { recursive: true });
    }
    expect(resumed).toBeGreaterThanOrEqual(Math.max(1, ROUNDS / 5 - 1));
  }, 3_600_000);
});

/**
 * A dead run's lock expires after ten seconds, and the next prune removes its marks; other tests wait for
 * that.
 */
async function removeMarks(home: string): Promise<void> {
  const marks = (await readdir(home).catch(() => [])).filter((name) => /^\.(?:lock|reader-.*)$/.test(name));
  for (const name of marks) await rm(join(home, name), { recursive: true });
}

async function bytesOfImages(folder: string): Promise<number> {
  let bytes = 0;
  for (const name of await readdir(folder)) {
    if (/\.(?:qcow2|raw)$/.test(name)) bytes += (await stat(join(folder, name))).blocks * 512;
  }
  return bytes;
}
