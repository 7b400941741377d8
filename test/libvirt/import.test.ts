import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { describeWithLibvirt, LAB_DISKS, Lab } from "../support/libvirt-lab.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;

interface PointJson {
  readonly id: string;
  readonly level: string;
  readonly disks: readonly { readonly name: string; readonly parent: string | null }[];
}

let lab: Lab;
let folder: string;
let repo: string;
beforeEach(async () => {
  lab = await Lab.start();
  folder = await mkdtemp(join(tmpdir(), "nbdpull-import-"));
  repo = join(folder, "repo");
});
afterEach(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

function done(ran: Ran): PointJson {
  expect({ code: ran.code, stderr: ran.code === 0 ? "" : ran.stderr }).toEqual({ code: 0, stderr: "" });
  return ran.json() as PointJson;
}

function importing(...args: string[]): Promise<Ran> {
  return nbdpull("import", ...args, "--to", repo, "--domain", lab.domain, "--json");
}

/** Copies made by qemu-img as of the checkpoint cp0: vda as qcow2, vdb as raw. */
async function copiesAsOfCp0(): Promise<{ vda: string; vdb: string }> {
  for (const disk of LAB_DISKS) await lab.write(disk, 0, 8 * MiB, 0x11);
  await using backup = await lab.beginBackup({ checkpoint: "cp0" });
  const vda = join(folder, "vda.qcow2");
  await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", await backup.referenceCopy("vda"), vda);
  return { vda, vdb: await backup.referenceCopy("vdb") };
}

/** Attaches to an incremental job since cp0, and compares the restored disks with the job's exports. */
async function expectIncrementOn(parents: Readonly<Record<string, string>>): Promise<void> {
  await lab.write("vda", 3 * MiB + 512, 5 * 512, 0x22);
  await lab.write("vdb", 40 * MiB, MiB, 0x23);
  await lab.writeZeroes("vda", MiB, 300 * 512);
  await lab.discard("vdb", 2 * MiB, 192 * 1024);
  await using backup = await lab.beginBackup({ checkpoint: "cp1", incremental: "cp0" });
  const point = done(await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp1", "--json"));
  expect(point.level).toBe("incremental");
  expect(Object.fromEntries(point.disks.map(({ name, parent }) => [name, parent]))).toEqual(parents);
  const target = join(folder, "restored");
  expect((await nbdpull("restore", repo, lab.domain, "--to", target, "--format", "raw")).code).toBe(0);
  for (const disk of LAB_DISKS) {
    const copy = await backup.referenceCopy(disk);
    await qemuImg("compare", "-f", "raw", "-F", "raw", join(target, `${disk}.raw`), copy);
    const stock = join(folder, "stock.raw");
    await qemuImg("convert", "-O", "raw", join(repo, lab.domain, point.id, `${disk}.qcow2`), stock);
    await qemuImg("compare", "-f", "raw", "-F", "raw", stock, copy);
  }
  expect((await nbdpull("verify", repo)).code).toBe(0);
}

await describeWithLibvirt("import as of a libvirt checkpoint", () => {
  it("makes a base for increments from images that were imported one by one", async () => {
    const { vda, vdb } = await copiesAsOfCp0();
    const first = done(await importing(vda, "--disk", "vda", "--checkpoint", "cp0"));
    const second = done(await importing(vdb, "--disk", "vdb", "--checkpoint", "cp0"));
    await expectIncrementOn({ vda: first.id, vdb: second.id });
  }, 480_000);

  it("makes a base for increments from images that were imported together, even offline", async () => {
    const { vda, vdb } = await copiesAsOfCp0();
    const disks = ["--disk", `vda=${vda}`, "--disk", `vdb=${vdb}`];
    const { id } = done(await importing(...disks, "--checkpoint", "cp0", "--offline", "--compress"));
    await expectIncrementOn({ vda: id, vdb: id });
  }, 480_000);

  it("is refused if libvirt does not know the checkpoint, if that excludes the disk, or if the UUID is another", async () => {
    const { vda } = await copiesAsOfCp0();
    await lab.createCheckpoint("half", ["vdb"]);
    for (const [checkpoint, code] of [
      ["none", "E_NO_CHECKPOINT"],
      ["half", "E_CHECKPOINT_DISK"],
    ] as const) {
      const ran = await importing(vda, "--disk", "vda", "--checkpoint", checkpoint);
      expect([ran.code, ran.json()]).toMatchObject([4, { error: { code } }]);
    }
    const uuid = "bbbbbbbb-2222-4222-8222-222222222222";
    const ran = await importing(vda, "--disk", "vda", "--checkpoint", "cp0", "--uuid", uuid);
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_OTHER_DOMAIN", uuid: lab.uuid } }]);
    expect(await readdir(folder)).not.toContain("repo");
  }, 480_000);

  it("is no longer a base if the checkpoint was created again", async () => {
    const { vda, vdb } = await copiesAsOfCp0();
    const disks = ["--disk", `vda=${vda}`, "--disk", `vdb=${vdb}`];
    done(await importing(...disks, "--checkpoint", "cp0"));
    await lab.deleteCheckpoint("cp0");
    await sleep(1100);
    await lab.createCheckpoint("cp0");
    await using _ = await lab.beginBackup({ checkpoint: "cp1", incremental: "cp0" });
    const ran = await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp1", "--json");
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_OTHER_CHECKPOINT" } }]);
  }, 480_000);
});
