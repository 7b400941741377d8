import { beforeEach, describe, expect, it, vi } from "vitest";
import { openRunningJob } from "../../../../src/backup/libvirt/job/running-job.js";
import { CHECKPOINT, FULL, INCREMENTAL, MIXED } from "../dumps.js";
import { FakeLibvirt } from "../fake-libvirt.js";

/** 10:00:00.600 on some day: the time at which the job started. */
const STARTED = Date.UTC(2026, 10, 20, 10, 0, 0, 600);

let libvirt: FakeLibvirt;

beforeEach(() => {
  vi.useFakeTimers({ now: STARTED + 60_000, toFake: ["Date"] });
  libvirt = new FakeLibvirt(INCREMENTAL);
  libvirt.startedAt = STARTED;
  return () => vi.useRealTimers();
});

describe("a running job is still the same", () => {
  it("after any time, and after both clocks were set", async () => {
    const job = await openRunningJob({ domain: "lab", libvirt });
    vi.setSystemTime(STARTED + 86_400_000);
    await job.assertAlive();
    vi.setSystemTime(STARTED + 1000);
    await job.assertAlive();
  });

  it("after libvirtd was restarted, which gives it a new start time and forgets its export names", async () => {
    libvirt.backup = MIXED;
    const job = await openRunningJob({ domain: "lab", libvirt });
    libvirt.backup = MIXED.replaceAll(/ export(?:name|bitmap)='[^']*'/g, "");
    libvirt.startedAt = STARTED + 50_000;
    await job.assertAlive();
  });

  it("when libvirt was too busy to tell at first, which is told once", async () => {
    const job = await openRunningJob({ domain: "lab", libvirt });
    libvirt.busyAnswers = 2;
    const onWait = vi.fn();
    await job.assertAlive({ onWait });
    expect(onWait.mock.calls).toEqual([
      ["libvirt is asked for up to 10 minutes whether the job still runs (another operation holds it)"],
    ]);
    libvirt.busyAnswers = 1;
    libvirt.endedInQemu = ["vda"];
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_ENDED" });
    libvirt.busyAnswers = 1;
    await expect(job.assertAlive({ patienceMs: 0 })).rejects.toMatchObject({ code: "E_DOMAIN_BUSY" });
  });

  it("when the hypervisor's clock is an hour off", async () => {
    libvirt.aheadMs = 3_600_000;
    const job = await openRunningJob({ domain: "lab", libvirt });
    await job.assertAlive();
  });
});

describe("a running job is no longer the same", () => {
  it.each([
    [
      "when its description changed",
      () => Object.assign(libvirt, { backup: INCREMENTAL.replace("'5'", "'7'") }),
    ],
    [
      "when the domain was restarted, although all else is equal",
      () => Object.assign(libvirt, { domainNumber: 2 }),
    ],
    [
      "when it has another base",
      () => Object.assign(libvirt, { backup: INCREMENTAL.replaceAll("cp1", "cp2") }),
    ],
  ])("%s", async (_, change) => {
    const job = await openRunningJob({ domain: "lab", libvirt });
    change();
    await expect(job.assertAlive()).rejects.toMatchObject({
      code: "E_JOB_REPLACED",
      message: expect.stringContaining("Attach again"),
    });
  });

  it("when it began later, even if all else is equal and libvirt gives no index", async () => {
    libvirt.backup = INCREMENTAL.replace(" index='5'", "");
    const job = await openRunningJob({ domain: "lab", libvirt });
    libvirt.startedAt = STARTED + 30_000;
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_REPLACED" });
  });

  it("when QEMU has ended it on one disk, though libvirt describes it as before", async () => {
    const job = await openRunningJob({ domain: "lab", libvirt });
    libvirt.endedInQemu = ["vda"];
    await expect(job.assertAlive()).rejects.toMatchObject({
      code: "E_JOB_ENDED",
      message: expect.stringContaining("although libvirt still shows it (vda: Job 'backup' in state"),
    });
  });

  it("when libvirt 11, which does not ask QEMU, was told to cancel it", async () => {
    libvirt.libvirtVersion = "11.3.0";
    libvirt.endedInQemu = ["vda", "vdb"];
    libvirt.sizes = { disk: 512, scratch: 1024 };
    const job = await openRunningJob({ domain: "lab", libvirt });
    await job.assertAlive();
    for (const scratch of [511, undefined]) {
      libvirt.sizes = { disk: 512, scratch };
      await expect(job.assertAlive()).rejects.toMatchObject({
        code: "E_JOB_ENDED",
        message: expect.stringContaining("it was told to cancel it"),
      });
    }
  });

  it.each([3, 67, 74, 84])("but not when libvirt can't ask QEMU (error %i)", async (number) => {
    const job = await openRunningJob({ domain: "lab", libvirt });
    libvirt.endedInQemu = ["vda"];
    libvirt.refusal = { libvirt: "this function is not supported by the connection driver", number };
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_LIBVIRT_REFUSED", details: { number } });
  });

  it("when a job of another kind runs", async () => {
    const job = await openRunningJob({ domain: "lab", libvirt });
    libvirt.operation = "migration-out";
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_ENDED" });
  });
});

describe("a checkpoint that the user names", () => {
  /** Asks for a checkpoint created at this second, relative to the job's start. */
  async function createdAt(second: number, name = "cp3") {
    const creationTime = Math.floor(STARTED / 1000) + second;
    libvirt.checkpoint = CHECKPOINT.replace("cp3", name).replace("1795185949", String(creationTime));
    return (await openRunningJob({ domain: "lab", libvirt })).checkpoint(name);
  }

  it.each([0, -1, -5])(
    "passes if it was created in the job's second, or a few seconds before (%i s)",
    async (second) => {
      await expect(createdAt(second)).resolves.toMatchObject({ name: "cp3", parent: "cp2" });
    },
  );

  it.each([1, 2, 3600])("is refused if it is newer than the job (%i s)", async (second) => {
    vi.setSystemTime(STARTED + 7_200_000);
    // Half a second is tolerated, so the job begins at .300.
    libvirt.startedAt = STARTED - 300;
    await expect(createdAt(second)).rejects.toMatchObject({
      code: "E_CHECKPOINT_NEWER",
      message: expect.stringMatching(
        /missing from the next increment.*checkpoint-list lab.*leave --checkpoint out/s,
      ),
    });
  });

  it.each([-7, -60, -86_400])("is refused if it is older than the job (%i s)", async (second) => {
    await expect(createdAt(second)).rejects.toMatchObject({
      code: "E_CHECKPOINT_OLDER",
      message: expect.stringMatching(/leave --checkpoint out/),
    });
  });

  it("is refused if it is a base of the job, however new", async () => {
    await expect(createdAt(0, "cp1")).rejects.toMatchObject({ code: "E_CHECKPOINT_IS_BASE" });
  });

  it("may have a base's name if the job is full", async () => {
    libvirt.backup = FULL;
    await expect(createdAt(0, "cp1")).resolves.toMatchObject({ name: "cp1" });
  });
});
