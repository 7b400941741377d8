/**
 * Backups of a running domain to Ceph. Then they are killed at random moments: `NBDPULL_KILL_ROUNDS=50` makes
 * it a long test.
 */
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull, type Ran, runNbdpull, startNbdpull } from "../support/nbdpull.js";
import { readingGuest } from "../support/reading-guest.js";
import { type StoreLab, withStoreLab } from "../support/store-lab.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const ROUNDS = Number(process.env["NBDPULL_KILL_ROUNDS"] ?? "2");
/** After a point was begun. Each takes 1.5 s at least. */
const LATEST_KILL_MS = 1_300;

await describeWithLibvirt("a backup of a running domain", () => {
  describeWith(["radosgw", "ceph-mon", "ceph-osd"], "to an object store", () => {
    let lab: StoreLab;
    withStoreLab((started) => {
      lab = started;
    });
    let guest: BackupLab;
    /** The bucket in which the first test has taken points for others. */
    let home = "";

    beforeAll(async () => {
      guest = await BackupLab.start();
      // It idles: when it starts, its disk has no boot sector yet.
      await guest.lab.powerOff();
      await guest.lab.redefine((xml) => xml.replace("<boot dev='network'/>", "<boot dev='hd'/>"));
      await guest.lab.powerOn();
    });
    afterAll(async () => {
      await guest?.[Symbol.asyncDispose]();
    });

    it("takes a full and increments, which restore byte for byte, and leaves nothing else there", async () => {
      // Of an earlier try of this test.
      for (const name of await guest.checkpoints()) await guest.lab.deleteCheckpoint(name);
      home = lab.bucket;
      guest.repo = lab.address("taken");
      await guest.lab.write("vda", 0, 20 * MiB, 0x11);
      const sector = join(guest.folder, "sector");
      await writeFile(sector, readingGuest());
      await guest.lab.copyInto("vda", sector);
      const taken: { readonly id: string; readonly copies: Awaited<ReturnType<BackupLab["copyNow"]>> }[] = [];
      for (let round = 0; round < 3; round += 1) {
        await guest.lab.write("vda", (7 * round + 1) * MiB + 512, 3 * 512, 0x20 + round);
        await guest.lab.writeZeroes("vdb", (3 * round + 2) * MiB, 100 * 512, { unmap: true });
        const copies = await guest.copyNow();
        const point = await guest.take(...(round === 2 ? ["--compress"] : []));
        expect(point.level).toBe(round === 0 ? "full" : "incremental");
        await guest.expectNothingLeft();
        taken.push({ id: point.id, copies });
      }
      expect(await lab.left("taken")).toEqual([]);
      const [{ id = "" } = {}] = taken;
      expect(await lab.keys(`taken/${guest.lab.domain}/${id}/domain.xml`)).toHaveLength(1);
      for (const { id, copies } of taken) await guest.expectPoint(id, copies);
      expectExit(await nbdpull("verify", guest.repo), 0);
    }, 480_000);

    it("has a chain that the running disks are compared with", async () => {
      const compare = async (): Promise<{ disks: { comparedBytes: number; findings: unknown[] }[] }> => {
        const args = ["verify", guest.repo, guest.lab.domain, "--live", "--scratch", guest.scratch, "--json"];
        return (await finished(startNbdpull(args, guest.start))).json() as Awaited<
          ReturnType<typeof compare>
        >;
      };
      const { disks } = await compare();
      expect(disks.map(({ findings }) => findings)).toEqual([[], []]);
      expect(disks[0]?.comparedBytes).toBeGreaterThan(15 * MiB);
      await guest.expectNothingLeft();
    });

    it("has points that are rehearsed and run from, with what is noted of that beside them", async () => {
      const { domain } = guest.lab;
      const [id = ""] = (await listed(guest.repo)).map((point) => (point as { id: string }).id);
      const work = await mkdtemp(join(tmpdir(), "nbdpull-from-store-"));
      const name = `${domain}-live`;
      try {
        // QEMU's user has to get to the disks.
        await chmod(work, 0o755);
        const rehearse = async (sign: string, within: string): Promise<Ran> => {
          const how = ["--expect", `serial:${sign}`, "--within", within];
          return await nbdpull("rehearse", guest.repo, domain, "--at", id, "--work", work, ...how);
        };
        const boots = (): Promise<string[]> => lab.keys(`taken/${domain}/${id}/.boot-reads.json`, home);
        // What an earlier try of this test has noted.
        for (const key of await boots()) await lab.remove(key, home);
        expectExit(await rehearse("never", "1"), 3);
        expect(await listed(guest.repo)).toMatchObject([{ id, rehearsed: { cameUp: false } }, {}, {}]);
        expect(await boots()).toEqual([]);
        // What it has read is noted when it comes up, and is there for the next one.
        expectExit(await rehearse("\\.\\.\\.", "60"), 0);
        const [key = ""] = await boots();
        const { disks } = JSON.parse((await lab.read(key, home)).toString()) as { disks: unknown[] };
        expect(disks).toEqual([{ disk: "vda", reads: [expect.stringMatching(/^0\+/)] }]);
        expectExit(await rehearse("\\.\\.\\.", "60"), 0);

        const notes = (): Promise<string[]> => lab.keys(`taken/${domain}/${id}/.live.`, home);
        const to = ["--at", id, "--to", join(work, "disks"), `--define=${name}`, "--live"];
        const args = ["restore", guest.repo, domain, ...to];
        const killed = startNbdpull([...args, "--limit-rate", "64K"]);
        const state = (): Promise<string> => virsh("domstate", name).catch(() => "");
        await expect.poll(state).toMatch(/^running/);
        killed.kill("SIGKILL");
        await killed.ended;
        expect(await notes()).toHaveLength(1);
        expectExit(await nbdpull(...args, "--resume"), 0);
        expect(await notes()).toEqual([]);
      } finally {
        await virsh("destroy", name).catch(() => undefined);
        await virsh("undefine", name).catch(() => undefined);
        await rm(`/var/log/libvirt/qemu/${name}.log`, { force: true });
        await rm(work, { recursive: true });
      }
    });

    it("that is given up leaves no checkpoints, though only its address tells where the store is", async () => {
      // An earlier try of this test has given it up.
      if ((await guest.checkpoints()).length === 0) await guest.take();
      const points = await listed(lab.address("taken", home));
      const address = `${lab.address("taken", home)}?endpoint=${lab.line.endpoint}`;
      const env = { ...guest.start.env, AWS_ENDPOINT_URL: "http://127.0.0.1:9" };
      const args = ["forget", address, guest.lab.domain, "--checkpoints", "--force"];
      expectExit(await runNbdpull(args, { ...guest.start, env }), 0);
      expect(await guest.checkpoints()).toEqual([]);
      expect(await listed(lab.address("taken", home))).toEqual(points);
    });

    const job = (): Promise<string> =>
      virsh("domjobinfo", guest.lab.domain).then((text) => /^Job type:\s+(\S+)/m.exec(text)?.[1] ?? text);

    it("that is silent keeps no signal from ending the backup and its job", async () => {
      guest.repo = lab.address("silent");
      await guest.lab.write("vda", 0, 40 * MiB, 0x72);
      let isSilent = false;
      lab.line.fault = ({ url }) => {
        isSilent ||= url.includes("partNumber=3");
        return isSilent ? "never answer" : undefined;
      };
      const running = startNbdpull(guest.arguments("--level", "full"), guest.start);
      await expect.poll(() => isSilent, { timeout: 60_000 }).toBe(true);
      const at = performance.now();
      running.kill("SIGTERM");
      expectExit(await finished(running), 143);
      // 10 s for the store, and what libvirt needs.
      expect(performance.now() - at).toBeLessThan(25_000);
      expect(await job()).toBe("None");
      lab.line.fault = () => undefined;
      expect(await listed(guest.repo)).toEqual([]);
      await guest.take();
      expect(await lab.left("silent")).toEqual([]);
      await guest.expectNothingLeft();
    }, 240_000);

    it("that is away for good fails the backup, which ends its job soon after it has lost the lease", async () => {
      guest.repo = lab.address("away");
      await guest.lab.write("vda", 0, 40 * MiB, 0x71);
      let awaySince = 0;
      lab.line.fault = ({ url }) => {
        if (awaySince === 0 && url.includes("partNumber=3")) awaySince = performance.now();
        return awaySince === 0 ? undefined : "hang up";
      };
      const running = startNbdpull(guest.arguments("--level", "full"), guest.start);
      await expect.poll(() => awaySince, { timeout: 60_000 }).toBeGreaterThan(0);
      expect(await job()).not.toBe("None");
      await expect.poll(job, { timeout: 120_000, interval: 500 }).toBe("None");
      // 48 s after the last renewal the lease is lost, and for 10 s an upload is tried to be aborted.
      expect(performance.now() - awaySince).toBeLessThan(75_000);
      const ended = await running.ended;
      expect(ended?.code).not.toBe(0);
      await guest.expectNothingLeft();
      lab.line.fault = () => undefined;
      expect(await listed(guest.repo)).toEqual([]);
      await guest.take();
      expect(await lab.left("away")).toEqual([]);
      await guest.expectNothingLeft();
    }, 240_000);

    it("that is killed at random moments loses no point, and the next leaves nothing of it", async () => {
      guest.repo = lab.address("killed");
      await guest.lab.write("vda", 0, 30 * MiB, 0x31);
      await guest.take("--level", "full");
      let [points, halves] = [1, 0];
      for (let round = 0; round < ROUNDS; round += 1) {
        await guest.lab.write("vda", ((round * 5) % 25) * MiB, 3 * MiB, 0x40 + (round % 100));
        // The first one is killed at once, while it has most of its time before it: something is left.
        const rate = round === 0 ? "1M" : round % 2 === 0 ? "20M" : "2M";
        const level = [...(round % 2 === 0 ? ["--level", "full"] : []), "--limit-rate", rate];
        const run = startNbdpull(guest.arguments(...level), guest.start);
        const half = async (): Promise<unknown[]> => await lab.half("killed");
        const ended = run.ended.then(() => true);
        while ((await half()).length === 0 && !(await Promise.race([ended, sleep(20, false)])));
        await Promise.race([ended, sleep(round === 0 ? 0 : Math.random() * LATEST_KILL_MS)]);
        run.kill("SIGKILL");
        await run.ended;
        if ((await half()).length > 0) halves += 1;
        const ids = await listed(guest.repo);
        // It may have been committed just before.
        expect(ids.length).toBeGreaterThanOrEqual(points);
        await guest.take();
        expect(await lab.left("killed")).toEqual([]);
        await guest.expectNothingLeft();
        points = ids.length + 1;
        expect(await listed(guest.repo)).toHaveLength(points);
      }
      // Otherwise nothing was tried.
      expect(halves).toBeGreaterThan(0);
      expectExit(await nbdpull("verify", guest.repo), 0);
    }, 3_600_000);

    it("takes points of a job that somebody else has begun, and leaves nothing where it is ended too early", async () => {
      guest.repo = lab.address("attached");
      const attach = (checkpoint: string): string[] => {
        return [
          "attach",
          guest.lab.domain,
          "--to",
          guest.repo,
          "--create",
          "--checkpoint",
          checkpoint,
          "--json",
        ];
      };
      for (const round of [0, 1]) {
        await guest.lab.write("vda", (round * 9 + 3) * MiB, 2 * MiB, 0x60 + round);
        const incremental = round === 0 ? {} : { incremental: "at0" };
        await using job = await guest.lab.beginBackup({ checkpoint: `at${round}`, ...incremental });
        const ran = await finished(startNbdpull(attach(`at${round}`), guest.start));
        expectExit(ran, 0);
        const { id, level } = ran.json() as { id: string; level: string };
        expect(level).toBe(round === 0 ? "full" : "incremental");
        await guest.expectPoint(id, {
          vda: await job.referenceCopy("vda"),
          vdb: await job.referenceCopy("vdb"),
        });
      }
      {
        await using _job = await guest.lab.beginBackup({ checkpoint: "at2" });
        const running = startNbdpull([...attach("at2"), "--limit-rate", "1M"], guest.start);
        const half = async (): Promise<unknown[]> => await lab.half("attached");
        await expect.poll(half, { interval: 20 }).not.toEqual([]);
        // The job itself goes on: QEMU 7.2 hangs if it is ended while a client is in its handshake.
        running.kill("SIGTERM");
        expect((await running.ended)?.code).toBe(143);
      }
      expect(await lab.left("attached")).toEqual([]);
      expect(await listed(guest.repo)).toHaveLength(2);
      expectExit(await nbdpull("verify", guest.repo), 0);
      for (const round of [2, 1, 0]) await guest.lab.deleteCheckpoint(`at${round}`);
    });

    it.each([
      ["SIGINT", 130],
      ["SIGTERM", 143],
      ["SIGHUP", 129],
    ] as const)(
      "leaves nothing after %s, and the next one is based on the last good point",
      async (signal, code) => {
        guest.repo = lab.address(`after-${signal}`);
        // Those of other repositories.
        const others = await guest.checkpoints();
        const ours = async (): Promise<string[]> =>
          (await guest.checkpoints()).filter((name) => !others.includes(name));
        const good = await guest.take();
        await guest.lab.write("vda", 0, 12 * MiB, 0x12);
        const run = startNbdpull(
          guest.arguments("--limit-rate", "64K", "--request-size", "64K", "--prove-base", "1"),
          guest.start,
        );
        await expect
          .poll(() => lab.half(`after-${signal}`), { interval: 20, timeout: 60_000 })
          .not.toEqual([]);
        await expect.poll(ours, { timeout: 60_000 }).toHaveLength(2);
        await sleep(2_000);
        run.kill(signal);
        const ran = await finished(run);
        expectExit(ran, code);
        expect(ran.stderr).not.toContain("not everything was cleared away");
        await guest.expectNothingLeft();
        expect(await ours()).toEqual([good.checkpoint]);
        expect(await lab.left(`after-${signal}`)).toEqual([]);
        const next = await guest.take();
        expect(next.disks[0]).toMatchObject({ parent: good.id });
        for (const name of await ours()) await guest.lab.deleteCheckpoint(name);
      },
      480_000,
    );
  });
});

async function listed(repository: string): Promise<readonly unknown[]> {
  const ran = await runNbdpull(["points", repository, "--json"]);
  expectExit(ran, 0);
  return ran.json() as unknown[];
}
