import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { describeWithLibvirt, LAB_DISKS, Lab, type LabDisk, virsh } from "../support/libvirt-lab.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;

interface BackupJson {
  readonly id: string;
  readonly level: string;
  readonly checkpoint: string | null;
  readonly retiredCheckpoints: readonly string[];
  readonly disks: readonly {
    readonly name: string;
    readonly mode: string;
    readonly parent: string | null;
    readonly reason?: string;
    readonly dirtyBytes: number;
  }[];
}

let lab: Lab;
let folder: string;
let repo: string;
let scratch: string;
beforeEach(async () => {
  lab = await Lab.start();
  folder = await mkdtemp(join(tmpdir(), "nbdpull-backup-"));
  repo = join(folder, "repo");
  scratch = await mkdtemp("/var/tmp/nbdpull-test-");
});
afterEach(async () => {
  await lab.destroy();
  await rm(folder, { recursive: true, force: true });
  await rm(scratch, { recursive: true, force: true });
});

function expectExit(ran: Ran, code: number): void {
  expect({ code: ran.code, stderr: ran.code === code ? "" : ran.stderr }).toEqual({ code, stderr: "" });
}

function backup(...args: readonly string[]): Promise<Ran> {
  return nbdpull("backup", lab.domain, "--to", repo, "--scratch", scratch, "--json", ...args);
}

async function backedUp(...args: readonly string[]): Promise<BackupJson> {
  const ran = await backup(...args);
  expectExit(ran, 0);
  return ran.json() as BackupJson;
}

async function checkpoints(): Promise<string[]> {
  const output = await virsh("checkpoint-list", lab.domain, "--name");
  return output.split("\n").filter((line) => line !== "");
}

/** What a backup must not leave: a job, scratch files, a folder, half a point. */
async function expectNothingLeft(): Promise<void> {
  await expect(virsh("backup-dumpxml", lab.domain)).rejects.toThrow(/no domain backup job|not running/);
  expect(await readdir(scratch)).toEqual([]);
  const names = await readdir(join(repo, lab.domain)).catch(() => []);
  expect(names.filter((name) => !/^\d{8}T/.test(name))).toEqual([]);
}

/**
 * The disk as it is now, while the guest does not write: nobody else can read it while the job is ours, so a job of the
 * lab's own is begun for it.
 */
async function copyNow(): Promise<Record<LabDisk, string>> {
  await using job = await lab.beginBackup();
  return { vda: await job.referenceCopy("vda"), vdb: await job.referenceCopy("vdb") };
}

async function expectPoint(id: string, copies: Partial<Record<LabDisk, string>>): Promise<void> {
  const target = join(folder, `restored-${id}`);
  expectExit(await nbdpull("restore", repo, lab.domain, "--at", id, "--to", target), 0);
  for (const disk of LAB_DISKS) {
    const copy = copies[disk];
    if (copy !== undefined) {
      await qemuImg("compare", "-f", "raw", "-F", "raw", join(target, `${disk}.raw`), copy);
    }
  }
}

await describeWithLibvirt("backup of a running domain", () => {
  it("takes a full, then increments, and every point comes back byte for byte", async () => {
    for (const disk of LAB_DISKS) await lab.write(disk, 0, 20 * MiB, 0x11);
    const taken: { point: BackupJson; copies: Record<LabDisk, string> }[] = [];
    for (let round = 0; round < 3; round += 1) {
      await lab.write("vda", (7 * round + 1) * MiB + 512, 3 * 512, 0x20 + round);
      await lab.writeZeroes("vdb", (3 * round + 2) * MiB, 100 * 512, { unmap: true });
      const copies = await copyNow();
      taken.push({ point: await backedUp(), copies });
      await expectNothingLeft();
    }
    expect(taken.map(({ point }) => point.level)).toEqual(["full", "incremental", "incremental"]);
    expect(taken[2]?.point.disks.map(({ parent }) => parent)).toEqual([
      taken[1]?.point.id,
      taken[1]?.point.id,
    ]);
    for (const { point, copies } of taken) await expectPoint(point.id, copies);
    // Those of the last point and of the last full one stay: differentials start from the latter.
    expect(await checkpoints()).toEqual([taken[0]?.point.checkpoint, taken[2]?.point.checkpoint]);
    expect(taken[2]?.point.retiredCheckpoints).toEqual([taken[1]?.point.checkpoint]);
    expectExit(await nbdpull("verify", repo), 0);
  }, 240_000);
});
