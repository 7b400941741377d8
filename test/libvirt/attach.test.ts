import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { describeWithLibvirt, LAB_DISKS, Lab, type LabBackup, type LabDisk } from "../support/libvirt-lab.js";
import { finished, nbdpull, type Ran, type Running, startNbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { restoreRaw, type StoredPoint, storedPoints } from "../support/restore-disk.js";

const KiB = 1024;
const MiB = 1024 * KiB;

interface PointJson {
  readonly id: string;
  readonly level: string;
  readonly checkpoint: string | null;
  readonly disks: readonly {
    readonly name: string;
    readonly mode: string;
    readonly parent: string | null;
    readonly file: string;
    readonly dirtyBytes: number;
  }[];
}

let lab: Lab;
let folder: string;
let repo: string;
beforeEach(async () => {
  lab = await Lab.start();
  folder = await mkdtemp(join(tmpdir(), "nbdpull-attach-"));
  repo = join(folder, "repo");
});
afterEach(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

/** Independent copies of both disks, made by qemu-img from the frozen exports. */
async function references(backup: LabBackup): Promise<Record<LabDisk, string>> {
  return { vda: await backup.referenceCopy("vda"), vdb: await backup.referenceCopy("vdb") };
}

/** Restores a point by us and by stock QEMU, and compares both with the copies of the frozen exports. */
async function expectPoint(id: string, copies: Record<LabDisk, string>): Promise<void> {
  const target = join(folder, `restored-${id}`);
  await restoreRaw(repo, lab.domain, id, target);
  for (const disk of LAB_DISKS) {
    await qemuImg("compare", "-f", "raw", "-F", "raw", join(target, `${disk}.raw`), copies[disk]);
    const image = join(repo, lab.domain, id, `${disk}.qcow2`);
    await qemuImg("check", "-q", image);
    const stock = join(folder, "stock.raw");
    await qemuImg("convert", "-O", "raw", image, stock);
    await qemuImg("compare", "-f", "raw", "-F", "raw", stock, copies[disk]);
  }
}

const points = (): Promise<StoredPoint[]> => storedPoints(repo, lab.domain);

/** Everything in the domain's folder except points; empty if the folder does not exist. */
async function leftovers(): Promise<string[]> {
  const names = await readdir(join(repo, lab.domain)).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
  return names.filter((name) => !/^\d{8}T/.test(name));
}

/** Attaches to the job of checkpoint cp0, for minutes. */
function startSlowly(): Running {
  const slowly = ["--request-size", "64K", "--limit-rate", "256K"];
  return startNbdpull(["attach", lab.domain, "--to", repo, "--checkpoint", "cp0", ...slowly]);
}

/** Waits until a run has begun to store a point; fails if that never happens. */
async function untilPartial(): Promise<void> {
  await expect.poll(leftovers).toContainEqual(expect.stringMatching(/\.partial$/));
}

function expectExit(ran: Ran, code: number): void {
  expect({ code: ran.code, stderr: ran.code === code ? "" : ran.stderr }).toEqual({ code, stderr: "" });
}

/** Writes data, zeroes and discards at odd multiples of 512 bytes; `seed` varies their places. */
async function guestWrites(seed: number): Promise<void> {
  const at = (i: number): number => ((seed * 7919 + i * 104_729) % 80_000) * 512;
  for (let i = 0; i < 6; i += 1)
    await lab.write("vda", at(i), 512 * (1 + 37 * i), 1 + ((seed * 16 + i) % 255));
  await lab.write("vdb", at(7), 3 * 512, 0x40 + seed);
  await lab.write("vdb", 48 * MiB + 6 * 512, 512, 0x50 + seed);
  await lab.writeZeroes("vda", at(8) + 512, 300 * 512);
  await lab.writeZeroes("vdb", at(9), 200 * KiB, { unmap: true });
  await lab.discard("vda", at(10), 1 * MiB);
  await lab.discard("vdb", 2 * MiB + seed * 64 * KiB, 192 * KiB);
}

await describeWithLibvirt("attach to a running libvirt job", () => {
  it("stores a full and increments while the guest writes, and every point restores byte for byte", async () => {
    for (const disk of LAB_DISKS) await lab.write(disk, 0, 40 * MiB, 0x11);
    await guestWrites(0);
    const taken: { id: string; copies: Record<LabDisk, string> }[] = [];
    for (let round = 0; round < 4; round += 1) {
      const incremental = round === 0 ? {} : { incremental: `cp${round - 1}` };
      await using backup = await lab.beginBackup({ checkpoint: `cp${round}`, ...incremental });
      const run = startNbdpull(["attach", lab.domain, "--to", repo, "--checkpoint", `cp${round}`, "--json"]);
      await guestWrites(10 * round + 1);
      const ran = await finished(run);
      expectExit(ran, 0);
      const point = ran.json() as PointJson & { jobEnded: boolean };
      expect(point).toMatchObject({
        level: round === 0 ? "full" : "incremental",
        checkpoint: `cp${round}`,
        jobEnded: false,
      });
      for (const disk of point.disks) expect(disk.parent).toBe(taken.at(-1)?.id ?? null);
      // The copies come after the pull and the writes, but the export is frozen.
      taken.push({ id: point.id, copies: await references(backup) });
      await guestWrites(10 * round + 5);
    }
    expect((await points()).map(({ id }) => id)).toEqual(taken.map(({ id }) => id));
    for (const { id, copies } of taken) await expectPoint(id, copies);
    const verified = await nbdpull("verify", repo, "--json");
    expectExit(verified, 0);
    expect(await leftovers()).toEqual([]);
    expect(await readdir(join(repo, lab.domain, taken[0]?.id ?? ""))).toContain("domain.xml");
  }, 480_000);

  it("reads export and bitmap names, TCP, excluded disks and mixed modes from the XML", async () => {
    await lab.write("vda", 0, 4 * MiB, 0x21);
    await lab.write("vdb", 0, 4 * MiB, 0x22);
    {
      await using backup = await lab.beginBackup({ checkpoint: "cp0", disks: ["vda"] });
      expectExit(await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp0"), 0);
      expect(backup.xml).toContain("backup='no'");
    }
    await lab.write("vda", 1 * MiB + 512, 512, 0x23);
    await using backup = await lab.beginBackup({
      checkpoint: "cp1",
      transport: "tcp",
      perDisk: {
        vda: { mode: "incremental", incremental: "cp0", exportName: "first disk", exportBitmap: "changes" },
        vdb: { mode: "full" },
      },
    });
    const ran = await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp1", "--json");
    expectExit(ran, 0);
    const [first, second] = await points();
    expect(first?.disks.map(({ name, mode }) => [name, mode])).toEqual([["vda", "full"]]);
    expect(second).toMatchObject({
      level: "incremental",
      disks: [
        { name: "vda", mode: "incremental", parent: first?.id },
        { name: "vdb", mode: "full", parent: null, reason: expect.stringContaining("full") },
      ],
    });
    await expectPoint(second?.id ?? "", await references(backup));
  });

  it("exits with 4 and stores nothing if no point has the job's base checkpoint", async () => {
    {
      await using _ = await lab.beginBackup({ checkpoint: "cp0" });
    }
    await using _ = await lab.beginBackup({ checkpoint: "cp1", incremental: "cp0" });
    const ran = await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp1", "--json");
    expectExit(ran, 4);
    expect(ran.stderr).toMatch(/checkpoint cp0.*no point.*backupmode='full'/s);
    expect(ran.json()).toMatchObject({ error: { code: "E_NO_PARENT", checkpoint: "cp0" } });
    expect(await leftovers()).toEqual([]);
    expect(await points()).toEqual([]);
  });

  it("exits with 4 if the checkpoint was deleted and created again under the same name", async () => {
    {
      await using _ = await lab.beginBackup({ checkpoint: "cp0" });
      expectExit(await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp0"), 0);
    }
    await lab.deleteCheckpoint("cp0");
    await sleep(1100);
    await lab.createCheckpoint("cp0");
    await using _ = await lab.beginBackup({ checkpoint: "cp1", incremental: "cp0" });
    const ran = await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp1", "--json");
    expectExit(ran, 4);
    expect(ran.json()).toMatchObject({ error: { code: "E_OTHER_CHECKPOINT" } });
    expect(await points()).toHaveLength(1);
  });

  it("exits with 4 if no job runs, or the domain does not exist", async () => {
    const ran = await nbdpull("attach", lab.domain, "--to", repo);
    expectExit(ran, 4);
    expect(ran.stderr).toMatch(/no backup job.*virsh backup-begin/s);
    expectExit(await nbdpull("attach", "no-such-domain", "--to", repo), 4);
  });

  it("warns that a point without --checkpoint is no base", async () => {
    {
      await using _ = await lab.beginBackup({ checkpoint: "cp0" });
      const ran = await nbdpull("attach", lab.domain, "--to", repo);
      expectExit(ran, 0);
      expect(ran.stderr).toMatch(/warning: .*no base/);
      expectExit(await nbdpull("attach", lab.domain, "--to", repo, "--strict"), 5);
    }
    await using _ = await lab.beginBackup({ checkpoint: "cp1", incremental: "cp0" });
    expectExit(await nbdpull("attach", lab.domain, "--to", repo), 4);
    expect((await points()).map(({ checkpoint }) => checkpoint)).toEqual([null, null]);
  });

  it("works from the XML alone, from a file and from standard input, without asking libvirt", async () => {
    await lab.write("vda", 0, MiB, 0x31);
    await using backup = await lab.beginBackup({ checkpoint: "cp0" });
    const file = join(folder, "job.xml");
    await writeFile(file, backup.xml);
    const args = [
      "attach",
      "--to",
      repo,
      "--domain",
      lab.domain,
      "--checkpoint",
      "cp0",
      "--json",
      "--connect",
      "test:///nothing",
    ];
    expectExit(await nbdpull(...args, "--xml", file), 0);
    const piped = startNbdpull([...args, "--xml", "-"], { input: backup.xml });
    expectExit(await finished(piped), 0);
    const copies = await references(backup);
    for (const { id } of await points()) await expectPoint(id, copies);
    await backup.end();
    const gone = await nbdpull(...args, "--xml", file);
    expectExit(gone, 1);
    expect(await points()).toHaveLength(2);
    expect(await leftovers()).toEqual([]);
  });

  it("ends the job with --end-job, after the commit", async () => {
    await using _ = await lab.beginBackup({ checkpoint: "cp0" });
    const ran = await nbdpull(
      "attach",
      lab.domain,
      "--to",
      repo,
      "--checkpoint",
      "cp0",
      "--end-job",
      "--json",
    );
    expectExit(ran, 0);
    expect(ran.json()).toMatchObject({ jobEnded: true });
    expectExit(await nbdpull("attach", lab.domain, "--to", repo), 4);
  });

  // The test kills the guest instead of aborting the job: QEMU 7.2 may hang in nbd-server-stop, guest
  // included, when a job is aborted while a client is connected.
  it("commits nothing when the guest dies during the backup", async () => {
    for (const disk of LAB_DISKS) await lab.write(disk, 0, 48 * MiB, 0x41);
    await using _ = await lab.beginBackup({ checkpoint: "cp0" });
    const run = startSlowly();
    await untilPartial();
    await lab.crash();
    const ran = await finished(run);
    expect([ran.code, ran.stderr]).toEqual([
      1,
      expect.stringContaining("ended during the backup (libvirt: shut off (crashed))"),
    ]);
    expect(await points()).toEqual([]);
    expect(await leftovers()).toEqual([]);
  });

  it("leaves job, repository and locks clean when it is interrupted, and works after a kill", async () => {
    for (const disk of LAB_DISKS) await lab.write(disk, 0, 48 * MiB, 0x51);
    await using backup = await lab.beginBackup({ checkpoint: "cp0" });
    const interrupted = startSlowly();
    await untilPartial();
    interrupted.kill("SIGTERM");
    expectExit(await finished(interrupted), 143);
    expect(await leftovers()).toEqual([]);

    const killed = startSlowly();
    await untilPartial();
    killed.kill("SIGKILL");
    await killed.ended;
    expect((await leftovers()).length).toBeGreaterThan(0);
    expectExit(await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp0"), 0);
    expect(await leftovers()).toEqual([]);
    const [point] = await points();
    await expectPoint(point?.id ?? "", await references(backup));
  });

  it("records the domain in the manifest", async () => {
    await using _ = await lab.beginBackup({ checkpoint: "cp0" });
    expectExit(await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "cp0"), 0);
    const [point] = await points();
    const manifest = JSON.parse(
      await readFile(join(repo, lab.domain, point?.id ?? "", "point.json"), "utf8"),
    ) as object;
    expect(manifest).toMatchObject({
      format: "nbdpull-point",
      version: 1,
      domain: { name: lab.domain, uuid: lab.uuid },
      checkpoint: { name: "cp0", creationTime: expect.any(Number) },
      disks: [
        { name: "vda", virtualSize: lab.sizes.vda },
        { name: "vdb", virtualSize: lab.sizes.vdb },
      ],
    });
  });
});
