import { chmod, mkdir, readdir, readFile, rmdir } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type BackupJson, BackupLab, expectExit } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt } from "../support/libvirt-lab.js";
import { NBDPULL, nbdpull, type Ran, runNbdpull } from "../support/nbdpull.js";
import { skipUnable } from "../support/tools.js";

interface Finding {
  readonly check: string;
  readonly status: "pass" | "warn" | "fail";
  readonly cause: string;
  readonly mend?: string;
  readonly code?: string;
}

/** The order matters: each test leaves the guest as the next one needs it. */
await describeWithLibvirt("doctor and backup", () => {
  let guest: BackupLab;
  beforeAll(async () => {
    guest = await BackupLab.start({ unprivileged: true, formats: { vdb: "raw" } });
    await chmod(guest.scratch, 0o711);
    await guest.lab.write("vda", 0, 8 * 1024 * 1024, 0x11);
  });
  afterAll(async () => {
    await guest[Symbol.asyncDispose]();
  });

  function doctor(...more: readonly string[]): Promise<Ran> {
    const { lab, repo, scratch } = guest;
    return nbdpull("doctor", lab.domain, "--to", repo, "--scratch", scratch, "--json", ...more);
  }

  /** Both agree: `doctor` fails with this code, and a backup is refused with it before anything begins. */
  async function expectObstacle(code: string, exit: number, ...options: readonly string[]): Promise<Finding> {
    const ran = await doctor(...options);
    expectExit(ran, 4);
    const failed = (ran.json() as Finding[]).filter(({ status }) => status === "fail");
    expect(failed.map((finding) => finding.code)).toEqual([code]);
    const checkpoints = await guest.checkpoints();
    const folders = await readdir(guest.scratch);
    const refused = await guest.run(...options);
    expectExit(refused, exit);
    expect(refused.json()).toMatchObject({ error: { code } });
    expect(await guest.checkpoints()).toEqual(checkpoints);
    expect(await readdir(guest.scratch)).toEqual(folders);
    return failed[0] as Finding;
  }

  async function findings(...options: readonly string[]): Promise<Map<string, Finding>> {
    const ran = await doctor(...options);
    expectExit(ran, 0);
    return new Map((ran.json() as Finding[]).map((finding) => [finding.check, finding]));
  }

  it("find no obstacle here, and doctor predicts the first backup without making anything", async () => {
    const found = await findings();
    expect(found.get("libvirt")?.cause).toMatch(/^libvirt \d.* with QEMU \d.* at qemu:\/\/\/system$/);
    expect(found.get("disk vda")).toMatchObject({ status: "pass" });
    expect(found.get("disk vdb")).toMatchObject({ status: "warn", cause: expect.stringContaining("raw") });
    expect(found.get("next backup vda")?.cause).toMatch(/^full, up to 8\S* MiB$/);
    expect(await readdir(guest.folder)).toEqual([]);
    expect(await readdir(guest.scratch)).toEqual([]);
  });

  it("refuse a port in use, a folder that QEMU's user can't reach, a missing agent and a missing base", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    try {
      const inUse = await expectObstacle("E_ADDRESS_IN_USE", 4, "--server", `tcp:${port}`);
      expect(inUse.mend).toBe(`ss -ltnp 'sport = :${port}'`);
    } finally {
      server.close();
    }
    const closed = join(guest.folder, "closed");
    await mkdir(closed, { mode: 0o700 });
    await chmod(guest.folder, 0o711);
    const unreachable = await expectObstacle("E_SCRATCH_ACCESS", 4, "--scratch", closed);
    expect(unreachable.mend).toBe(`chmod o+x ${closed}`);
    await execa("sh", ["-c", unreachable.mend ?? ""]);
    expect((await findings("--scratch", closed)).get("scratch folder")?.status).toBe("pass");
    await rmdir(closed);
    await expectObstacle("E_NO_AGENT", 4, "--freeze");
    await expectObstacle("E_NO_BASE", 4, "--level", "incremental");
    // Nothing was begun, so there is no repository either.
    expect(await readdir(guest.folder)).toEqual([]);
  });

  it("refuse a file system that is full or read-only", async (context) => {
    const small = join(guest.folder, "small");
    await mkdir(small);
    const mounted = await execa("mount", ["-t", "tmpfs", "-o", "size=256k,mode=0711", "none", small], {
      reject: false,
    });
    if (mounted.failed) skipUnable(context, "mount", "no file system can be mounted here");
    try {
      await expectObstacle("E_SCRATCH_FULL", 4, "--scratch", small);
      await expectObstacle("E_NO_ROOM", 4, "--to", join(small, "repo"));
      await execa("mount", ["-o", "remount,size=6m", small]);
      const roomy = (await findings("--to", join(small, "repo"))).get("repository");
      expect(roomy).toMatchObject({
        status: "warn",
        cause: expect.stringMatching(/^.* has .* MiB free, and/),
      });
      await execa("mount", ["-o", "remount,ro", small]);
      await expectObstacle("E_REPOSITORY_READ_ONLY", 4, "--to", join(small, "repo"));
    } finally {
      await execa("umount", [small]);
      await rmdir(small);
    }
  });

  it("refuse while a foreign job runs, but not after a backup that died", async () => {
    await guest.lab.write("vda", 8 * 1024 * 1024, 56 * 1024 * 1024, 0x13);
    const run = await guest.startSlowly();
    const elsewhere = await expectObstacle("E_FOREIGN_JOB", 4, "--to", join(guest.folder, "other"));
    expect(elsewhere.cause).toContain("nbdpull's, of another repository");
    await expectObstacle("E_BACKUP_RUNNING", 4);
    run.kill("SIGKILL");
    await run.ended;
    const found = await findings();
    expect(found.get("running job")).toMatchObject({
      status: "pass",
      cause: expect.stringContaining("the next backup goes on with its point, or ends it first"),
    });
  }, 480_000);

  it("make a disk full if QEMU has lost its bitmap, as doctor predicts", async () => {
    await guest.take();
    const good = await findings("--level", "incremental");
    expect(good.get("next backup vda")?.cause).toMatch(/^an increment on .*, about 0 B$/);
    await guest.lab.write("vda", 0, 1024 * 1024, 0x12);
    expect((await findings()).get("next backup vda")?.cause).toMatch(/, about 1 MiB$/);
    await guest.lab.crash();
    expect((await findings()).get("domain")).toMatchObject({
      status: "pass",
      cause: expect.stringMatching(/^shut off/),
    });
    await guest.lab.powerOn();
    const [checkpoint] = await guest.checkpoints();
    const found = await findings();
    expect(found.get(`checkpoint ${checkpoint}`)).toMatchObject({
      status: "warn",
      cause: expect.stringContaining("its bitmaps of vda are lost or broken"),
    });
    const foreseen = found.get("next backup vda")?.cause ?? "";
    expect(foreseen).toMatch(/^full, up to .*is lost or broken/);
    expectExit(await doctor("--strict"), 5);
    using front = new LibvirtInFront(guest.folder);
    const taken = await runNbdpull(guest.arguments(), { env: front.env() });
    expectExit(taken, 0);
    expect(front.asked.filter((call) => call === "begin")).toHaveLength(1);
    const { disks } = taken.json() as BackupJson;
    expect(foreseen).toContain(disks[0]?.reason);
  }, 480_000);

  it("can back up with only the capabilities of the systemd unit", async () => {
    const unit = await readFile(new URL("../../docs/systemd/nbdpull@.service", import.meta.url), "utf8");
    const kept = /^CapabilityBoundingSet=(.*)$/m.exec(unit)?.[1]?.toLowerCase().split(" ") ?? [];
    const bounding = ["-all", ...kept.map((name) => `+${name.replace("cap_", "")}`)].join(",");
    const setpriv = ["--no-new-privs", "--inh-caps=-all", `--bounding-set=${bounding}`, process.execPath];
    const ran = await execa("setpriv", [...setpriv, NBDPULL, ...guest.arguments()], { reject: false });
    expect([ran.exitCode, ran.stderr]).toEqual([0, ""]);
    await guest.expectNothingLeft();
  });
});
