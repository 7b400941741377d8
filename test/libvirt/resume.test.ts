import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, LAB_DISKS, virsh } from "../support/libvirt-lab.js";
import { nbdpull, startNbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;
/** What a run that is killed may have read in vain, and what a server and a plan may add. */
const SPARE = 64 * MiB;

interface ResumedJson {
  readonly id: string;
  readonly createdAt: string;
  readonly checkpoint: string;
  readonly resumed: { readonly times: number; readonly keptBytes: number; readonly readBytes: number } | null;
  readonly disks: readonly { readonly name: string; readonly dataBytes: number; readonly mode: string }[];
}

await describeWithLibvirt("a backup that was killed", () => {
  let guest: BackupLab;
  beforeAll(async () => {
    guest = await BackupLab.start({ sizes: { vda: 96 * MiB } });
    for (const disk of LAB_DISKS) {
      for (let at = 0; at < 40; at += 8) await guest.lab.write(disk, at * MiB, 7 * MiB, 0x21 + at);
    }
  });
  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  /** Starts a slow backup, and kills it when so many runs have gone on with its point and some more time has passed. */
  async function killed(resumed: number, afterMs: number, ...more: readonly string[]): Promise<void> {
    const run = startNbdpull(guest.arguments("--limit-rate", "12M", ...more), guest.start);
    await expect.poll(() => timesResumed(), { timeout: 20_000, interval: 50 }).toBe(resumed);
    await expect
      .poll(() => inPartial(), { timeout: 60_000, interval: 50 })
      .toContainEqual(expect.stringMatching(/\.journal$/));
    await sleep(afterMs);
    run.kill("SIGKILL");
    expect(await run.ended).toBeUndefined();
    // A dead run's lock expires after ten seconds, which other tests wait for.
    await rm(join(guest.repo, guest.lab.domain, ".lock"), { recursive: true });
  }

  /** How many runs have gone on with the point; undefined if there is none. */
  async function timesResumed(): Promise<number | undefined> {
    const partial = await partialFolder();
    const text = partial && (await readFile(join(partial, "begun.json"), "utf8").catch(() => undefined));
    return text && JSON.parse(JSON.parse(text).note).resumed;
  }

  async function partialFolder(): Promise<string | undefined> {
    const partial = (await guest.beside()).find((name) => name.endsWith(".partial"));
    return partial && join(guest.repo, guest.lab.domain, partial);
  }

  async function inPartial(): Promise<string[]> {
    const partial = await partialFolder();
    return partial === undefined ? [] : await readdir(partial);
  }

  async function partialId(): Promise<string | undefined> {
    return (await guest.beside()).find((name) => name.endsWith(".partial"))?.slice(1, -".partial".length);
  }

  async function resumed(...more: readonly string[]): Promise<ResumedJson> {
    return (await guest.take(...more)) as unknown as ResumedJson;
  }

  it.each([
    ["qcow2", [], 300],
    ["qcow2", ["--compress"], 900],
    ["raw", ["--format", "raw"], 100],
  ] as const)(
    "goes on with its point: %s %j, killed twice",
    async (_, format, afterMs) => {
      const options = ["--level", "full", ...format];
      const frozen = await guest.copyNow();
      await killed(0, afterMs, ...options);
      const id = await partialId();
      // The guest goes on, and the point is still that of the job.
      await guest.lab.write("vda", 2 * MiB, 40 * MiB, 0x77);
      await killed(1, afterMs, ...options);
      expect(await partialId()).toBe(id);
      const point = await resumed(...options);
      expect(point).toMatchObject({ id, resumed: { times: 2 } });
      const dataBytes = point.disks.reduce((sum, disk) => sum + disk.dataBytes, 0);
      const { keptBytes = 0, readBytes = 0 } = point.resumed ?? {};
      expect(keptBytes).toBeGreaterThan(0);
      expect(readBytes).toBeLessThan(dataBytes - keptBytes + SPARE);
      expect(keptBytes + readBytes).toBeGreaterThanOrEqual(dataBytes);
      await guest.expectNothingLeft();
      await guest.expectPoint(point.id, frozen);
      expect(await readdir(join(guest.repo, guest.lab.domain, point.id))).not.toContainEqual(
        expect.stringMatching(/journal|begun/),
      );
      expectExit(await nbdpull("verify", guest.repo, guest.lab.domain), 0);
    },
    240_000,
  );

  it.each<[string, () => Promise<readonly string[]>]>([
    ["with --no-resume", async () => ["--no-resume"]],
    ["for another compression", async () => ["--compress"]],
    [
      "if its job has ended",
      async () => {
        await virsh("domjobabort", guest.lab.domain);
        return [];
      },
    ],
    [
      "if its note was forged",
      async () => {
        const note = join((await partialFolder()) ?? "", "begun.json");
        await writeFile(note, (await readFile(note, "utf8")).replace('resumed\\":0', 'resumed\\":7'));
        return [];
      },
    ],
    [
      "if its definition was changed",
      async () => {
        await writeFile(join((await partialFolder()) ?? "", "domain.xml"), "<domain/>");
        return [];
      },
    ],
  ])(
    "is cleared away %s",
    async (_, change) => {
      await killed(0, 0, "--level", "full");
      const id = await partialId();
      const more = await change();
      const point = await resumed("--level", "full", ...more);
      expect(point.resumed).toBeNull();
      expect(point.id).not.toBe(id);
      expect(await guest.checkpoints()).toEqual([point.checkpoint]);
      await guest.expectNothingLeft();
    },
    120_000,
  );
});
