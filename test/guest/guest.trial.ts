/**
 * The trial with a real guest, in one story: points under load, with and without freezing, a guest that
 * somebody else froze, a resize, a reset and a crash in the middle of a backup, and a restored domain that
 * boots.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BackupJson, expectExit } from "../support/backup-lab.js";
import { virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull, type Ran, type Running, startNbdpull } from "../support/nbdpull.js";
import { DISKS, type Disk, expectSame, inspect, RealGuest, startsOf, until } from "./real-guest.js";

describe("a guest under load", () => {
  let guest: RealGuest;
  let folder: string;
  let repo: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-guest-"));
    repo = join(folder, "repo");
    guest = await RealGuest.start();
  });
  afterAll(async () => {
    await guest?.[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  const args = (...more: readonly string[]): string[] => [
    ...["backup", guest.domain, "--to", repo, "--json"],
    ...more,
  ];
  const run = (...more: readonly string[]): Promise<Ran> => nbdpull(...args(...more));

  async function take(...more: readonly string[]): Promise<BackupJson> {
    const ran = await run(...more);
    expectExit(ran, 0);
    return ran.json() as BackupJson;
  }

  /** Restores the point and expects every row in it that was acknowledged before. */
  async function expectPoint(
    { id }: BackupJson,
    rows: Record<Disk, number>,
    { frozen = false } = {},
  ): Promise<void> {
    const to = join(folder, `restored-${id}`);
    expectExit(await nbdpull("restore", repo, guest.domain, "--at", id, "--to", to, "--format", "raw"), 0);
    for (const disk of DISKS) {
      const raw = join(to, `${disk}.raw`);
      await expectSame(raw, join(repo, guest.domain, id, `${disk}.qcow2`));
      const found = await inspect(disk, raw, folder);
      expect(found).toMatchObject({ integrity: "ok", wrong: 0, sound: true });
      expect(found.rows).toBeGreaterThanOrEqual(rows[disk]);
      if (frozen) expect(found.clean).toBe(true);
    }
    await rm(to, { recursive: true });
  }

  /** Starts a backup that takes long, and waits until its job runs. */
  async function startSlowly(): Promise<Running> {
    const running = startNbdpull(args("--level", "copy", "--limit-rate", "8M", "--request-size", "64K"));
    await until("job", async () => (await virsh("backup-dumpxml", guest.domain).catch(() => "")) !== "");
    await sleep(3000);
    return running;
  }

  it("gives a full and three increments, frozen or not, with every acknowledged row", async () => {
    await guest.work(20);
    for (const [index, options] of [["--freeze"], [], ["--freeze=/vda,/vdb,/vdc"], []].entries()) {
      const rows = await guest.acknowledged();
      const point = await take(...options);
      expect(point).toMatchObject({ level: index === 0 ? "full" : "incremental", warnings: [] });
      await expectPoint(point, rows, { frozen: options.length > 0 });
      await guest.work(10);
    }
  });

  it("is frozen by nobody while it is frozen or paused, or has no such mountpoint", async () => {
    await virsh("domfsfreeze", guest.domain);
    const frozen = await run("--freeze");
    expect([frozen.code, frozen.json()]).toMatchObject([4, { error: { code: "E_GUEST_FROZEN" } }]);
    expect(await virsh("domfsthaw", guest.domain)).toContain("Thawed 3");
    const nowhere = await run("--freeze=/vda,/nonexistent");
    expect([nowhere.code, nowhere.json()]).toMatchObject([4, { error: { code: "E_NO_MOUNTPOINT" } }]);
    await virsh("suspend", guest.domain);
    const paused = await run("--freeze");
    expect([paused.code, paused.json()]).toMatchObject([4, { error: { code: "E_GUEST_PAUSED" } }]);
    await virsh("resume", guest.domain);
  });

  it("has a disk taken in full that was resized", async () => {
    await virsh("blockresize", guest.domain, "vdb", "256M");
    await guest.work(5);
    const rows = await guest.acknowledged();
    const point = await take("--freeze");
    expect(point.disks).toMatchObject([
      { name: "vda", mode: "incremental" },
      { name: "vdb", mode: "full", reason: expect.stringContaining("resized") },
      { name: "vdc", mode: "incremental" },
    ]);
    await expectPoint(point, rows, { frozen: true });
  });

  it("may be reset in the middle of a backup, whose job is waited for", async () => {
    const rows = await guest.acknowledged();
    const running = await startSlowly();
    await virsh("reset", guest.domain);
    const ran = await finished(running);
    expectExit(ran, 0);
    await expect(virsh("backup-dumpxml", guest.domain)).rejects.toThrow(/no domain backup job/);
    // libvirt 9 may have lost the agent, if the job ended soon after the reset.
    const lost = await run("--freeze");
    if (lost.code !== 0) {
      const message = expect.stringContaining("virsh reboot");
      expect(lost.json()).toMatchObject({ error: { code: "E_NO_AGENT", message } });
      await guest.work(5);
      await virsh("reset", guest.domain);
    }
    await guest.hasAgent();
    await expectPoint(ran.json() as BackupJson, rows);
  });

  it("is named if it dies in the middle of a backup, and the next backup is complete", async () => {
    const running = await startSlowly();
    await guest.crash();
    const ran = await finished(running);
    expect([ran.code, ran.json()]).toMatchObject([1, { error: { code: "E_GUEST_ENDED" } }]);
    expect(ran.stderr).not.toContain("warning");
    await guest.powerOn();
    for (const started of Object.values(await startsOf(guest.serialLog))) {
      expect(started).toMatchObject({ integrity: "ok", wrong: 0 });
    }
    const rows = await guest.acknowledged();
    const point = await take("--freeze");
    expect(point.level).toBe("full");
    await expectPoint(point, rows, { frozen: true });
    const checkpoints = await virsh("checkpoint-list", guest.domain, "--name");
    expect(checkpoints.trim().split("\n")).toEqual([point.checkpoint]);
  });

  it("boots from the restored domain, with a serial line of its own", async () => {
    await guest.work(5);
    const rows = await guest.acknowledged();
    await take("--freeze");
    const name = `${guest.domain}-restored`;
    const to = join(folder, "domain");
    // The guest's QEMU runs as root here, which a definition that is not trusted may not ask for.
    const define = ["--format", "qcow2", `--define=${name}`, "--trust-definition"];
    expectExit(await nbdpull("restore", repo, guest.domain, "--to", to, ...define), 0);
    try {
      await virsh("start", name);
      const log = join(to, `${name}.serial0.log`);
      const started = await startsOf(log);
      for (const disk of DISKS) {
        expect(started[disk]).toMatchObject({ integrity: "ok", wrong: 0 });
        expect(started[disk].rows).toBeGreaterThanOrEqual(rows[disk]);
      }
      expect(await readFile(log, "latin1")).not.toContain("BAD");
    } finally {
      await virsh("destroy", name).catch(() => undefined);
      await virsh("undefine", name).catch(() => undefined);
      await execa("rm", ["-f", `/var/log/libvirt/qemu/${name}.log`]);
    }
  });

  it("equals its images byte for byte when it is off", async () => {
    await virsh("destroy", "--graceful", guest.domain);
    const { id } = await take();
    const to = join(folder, "off");
    expectExit(await nbdpull("restore", repo, guest.domain, "--at", id, "--to", to, "--format", "raw"), 0);
    for (const disk of DISKS) await expectSame(join(to, `${disk}.raw`), guest.image(disk));
    expectExit(await nbdpull("verify", repo, guest.domain), 0);
  });
});
