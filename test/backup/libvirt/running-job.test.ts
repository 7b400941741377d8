import { beforeEach, describe, expect, it, vi } from "vitest";
import { openRunningJob } from "../../../src/backup/libvirt/running-job.js";
import { CHECKPOINT, FULL, INCREMENTAL, MIXED } from "./dumps.js";
import { FakeVirsh } from "./fake-virsh.js";

/** 10:00:00.600 on some day: the time at which the job started. */
const STARTED = Date.UTC(2026, 10, 20, 10, 0, 0, 600);

let virsh: FakeVirsh;

beforeEach(() => {
  vi.useFakeTimers({ now: STARTED + 60_000, toFake: ["Date"] });
  virsh = new FakeVirsh(INCREMENTAL);
  virsh.startedAt = STARTED;
  return () => vi.useRealTimers();
});

describe("a running job is still the same", () => {
  it("after any time, and after both clocks were set", async () => {
    const job = await openRunningJob({ domain: "lab", virsh });
    vi.setSystemTime(STARTED + 86_400_000);
    await job.assertAlive();
    vi.setSystemTime(STARTED + 1000);
    await job.assertAlive();
  });

  it("after libvirtd was restarted, which gives it a new start time and forgets its export names", async () => {
    virsh.backup = MIXED;
    const job = await openRunningJob({ domain: "lab", virsh });
    virsh.backup = MIXED.replaceAll(/ export(?:name|bitmap)='[^']*'/g, "");
    virsh.startedAt = STARTED + 50_000;
    await job.assertAlive();
  });

  it("when the hypervisor's clock is an hour off", async () => {
    virsh.aheadMs = 3_600_000;
    const job = await openRunningJob({ domain: "lab", virsh });
    await job.assertAlive();
  });
});

describe("a running job is no longer the same", () => {
  it.each([
    [
      "when its description changed",
      () => Object.assign(virsh, { backup: INCREMENTAL.replace("'5'", "'7'") }),
    ],
    [
      "when the domain was restarted, although all else is equal",
      () => Object.assign(virsh, { domainNumber: 2 }),
    ],
    [
      "when it has another base",
      () => Object.assign(virsh, { backup: INCREMENTAL.replaceAll("cp1", "cp2") }),
    ],
  ])("%s", async (_, change) => {
    const job = await openRunningJob({ domain: "lab", virsh });
    change();
    await expect(job.assertAlive()).rejects.toMatchObject({
      code: "E_JOB_REPLACED",
      message: expect.stringContaining("Attach again"),
    });
  });

  it("when it began later, even if all else is equal and libvirt gives no index", async () => {
    virsh.backup = INCREMENTAL.replace(" index='5'", "");
    const job = await openRunningJob({ domain: "lab", virsh });
    virsh.startedAt = STARTED + 30_000;
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_REPLACED" });
  });

  it("when a job of another kind runs", async () => {
    const job = await openRunningJob({ domain: "lab", virsh });
    virsh.operation = 5;
    await expect(job.assertAlive()).rejects.toMatchObject({ code: "E_JOB_ENDED" });
  });
});

describe("a checkpoint that the user names", () => {
  /** Asks for a checkpoint created at this second, relative to the job's start. */
  async function createdAt(second: number, name = "cp3") {
    const creationTime = Math.floor(STARTED / 1000) + second;
    virsh.checkpoint = CHECKPOINT.replace("cp3", name).replace("1795185949", String(creationTime));
    return (await openRunningJob({ domain: "lab", virsh })).checkpoint(name);
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
    virsh.startedAt = STARTED - 300;
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
    virsh.backup = FULL;
    await expect(createdAt(0, "cp1")).resolves.toMatchObject({ name: "cp1" });
  });
});
