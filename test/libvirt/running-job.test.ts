import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { exportedDisks, parseBackupJob } from "../../src/backup/libvirt/documents/job-xml.js";
import { openRunningJob } from "../../src/backup/libvirt/job/running-job.js";
import { canBeSameJob } from "../../src/backup/libvirt/job/same-job.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { describeWithLibvirt, Lab } from "../support/libvirt-lab.js";

const libvirt = new Libvirt({ connect: "qemu:///system" });

await describeWithLibvirt("a job that is already running", () => {
  it("is found by the domain's name, and is alive while it runs", async () => {
    await using lab = await Lab.start();
    await using backup = await lab.beginBackup({ checkpoint: "cp1" });
    const job = await openRunningJob({ domain: lab.domain, libvirt });
    expect(job.domain).toMatchObject({ name: lab.domain, uuid: lab.uuid });
    expect(job.domain.disks).toMatchObject([
      { target: "vda", source: lab.image("vda"), format: "qcow2" },
      { target: "vdb", source: lab.image("vdb"), format: "qcow2" },
    ]);
    expect(job.backupXml.trim()).toBe(backup.xml.trim());
    expect(job.job.server).toEqual({ ...backup.server, tls: false });
    await lab.write("vda", 0, 65536, 1);
    await job.assertAlive();
  });

  it("reports its mixed modes, bases and names", async () => {
    await using lab = await Lab.start();
    await (await lab.beginBackup({ checkpoint: "cp1" })).end();
    await using backup = await lab.beginBackup({
      transport: "tcp",
      incremental: "cp1",
      perDisk: { vda: { exportName: "a <b> & 'c'", exportBitmap: "changes" }, vdb: { mode: "full" } },
    });
    const { job } = await openRunningJob({ domain: lab.uuid, libvirt });
    expect(job.server).toEqual({ ...backup.server, tls: false });
    expect(exportedDisks(job)).toMatchObject([
      { name: "vda", mode: "incremental", incremental: "cp1", exportName: "a <b> & 'c'", bitmap: "changes" },
      { name: "vdb", mode: "full", exportName: "vdb" },
    ]);
  });

  it("is not found if none runs, the domain does not exist, or it is off", async () => {
    await using lab = await Lab.start();
    const open = (domain: string) => openRunningJob({ domain, libvirt });
    await expect(open(lab.domain)).rejects.toMatchObject({ code: "E_NO_JOB" });
    await expect(open("no-such-domain")).rejects.toMatchObject({ code: "E_NO_SUCH_DOMAIN" });
    await lab.powerOff();
    await expect(open(lab.domain)).rejects.toMatchObject({ code: "E_DOMAIN_OFF" });
  });

  it("is dead after it was aborted, and reports how it ended", async () => {
    await using lab = await Lab.start();
    await lab.beginBackup();
    const job = await openRunningJob({ domain: lab.domain, libvirt });
    await libvirt.abortJob(lab.domain);
    await expect(job.assertAlive()).rejects.toMatchObject({
      code: "E_JOB_ENDED",
      message: expect.stringContaining("Operation canceled"),
    });
    await libvirt.abortJob(lab.domain);
    // Somebody else's job in its place isn't ended for it.
    await lab.beginBackup();
    const theirs = await openRunningJob({ domain: lab.domain, libvirt });
    await libvirt.abortJob(lab.domain, { isOurs: (xml) => canBeSameJob(parseBackupJob(xml), job.job) });
    await theirs.assertAlive();
    await libvirt.abortJob(lab.domain, { isOurs: (xml) => canBeSameJob(parseBackupJob(xml), theirs.job) });
    await expect(theirs.assertAlive()).rejects.toMatchObject({ code: "E_JOB_ENDED" });
  });

  it("is dead after the guest was destroyed, even if it runs again", async () => {
    await using lab = await Lab.start();
    await lab.beginBackup();
    const job = await openRunningJob({ domain: lab.domain, libvirt });
    await lab.powerOff();
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_ENDED" });
    await lab.powerOn();
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_ENDED" });
    await lab.beginBackup();
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_REPLACED" });
  });

  it.each<[string, (domain: string) => Promise<unknown>]>([
    ["what runs", (domain) => libvirt.runningJob(domain)],
    ["for a job's end", (domain) => libvirt.abortJob(domain)],
    ["for a known job's end", (domain) => libvirt.abortJob(domain, { isKnown: true })],
  ])(
    "counts as gone if QEMU dies while libvirt asks it %s",
    async (_, ask) => {
      await using lab = await Lab.start();
      await lab.beginBackup();
      const qemu = Number(await readFile(`/run/libvirt/qemu/${lab.domain}.pid`, "utf8"));
      // A stopped QEMU can't answer libvirt, so it dies in the middle of the question.
      process.kill(qemu, "SIGSTOP");
      const answered = expect(ask(lab.domain)).resolves.not.toThrow();
      await sleep(1000);
      process.kill(qemu, "SIGKILL");
      await answered;
    },
    60_000,
  );

  it("is distinguished from another job in its place", async () => {
    await using lab = await Lab.start();
    const first = await lab.beginBackup({ checkpoint: "cp1" });
    const job = await openRunningJob({ domain: lab.domain, libvirt });
    await first.end();
    await lab.beginBackup({ checkpoint: "cp2" });
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_REPLACED" });
  });

  it("accepts its own checkpoint, but no older, newer, missing or base one", async () => {
    await using lab = await Lab.start();
    await (await lab.beginBackup({ checkpoint: "base" })).end();
    await lab.createCheckpoint("older");
    await sleep(7000);
    await lab.beginBackup({ checkpoint: "own", incremental: "base" });
    await sleep(2500);
    await lab.createCheckpoint("newer");
    const job = await openRunningJob({ domain: lab.domain, libvirt });

    await expect(job.checkpoint("own")).resolves.toMatchObject({
      name: "own",
      parent: "older",
      disks: [
        { name: "vda", bitmap: "own" },
        { name: "vdb", bitmap: "own" },
      ],
    });
    await expect(job.checkpoint("base")).rejects.toMatchObject({ code: "E_CHECKPOINT_IS_BASE" });
    await expect(job.checkpoint("older")).rejects.toMatchObject({ code: "E_CHECKPOINT_OLDER" });
    await expect(job.checkpoint("newer")).rejects.toMatchObject({ code: "E_CHECKPOINT_NEWER" });
    await expect(job.checkpoint("missing")).rejects.toMatchObject({ code: "E_NO_CHECKPOINT" });
  });
});
