import { chmod, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, LAB_DISKS, type LabDisk, virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;

await describeWithLibvirt("backup of a running domain", () => {
  let guest: BackupLab;
  beforeEach(async () => {
    guest = await BackupLab.start();
  });
  afterEach(async () => {
    await guest[Symbol.asyncDispose]();
  });

  it("takes a full, then increments, and every point restores byte for byte", async () => {
    const { lab } = guest;
    for (const disk of LAB_DISKS) await lab.write(disk, 0, 20 * MiB, 0x11);
    const taken: { id: string; checkpoint: string | null; copies: Record<LabDisk, string> }[] = [];
    for (let round = 0; round < 3; round += 1) {
      await lab.write("vda", (7 * round + 1) * MiB + 512, 3 * 512, 0x20 + round);
      await lab.writeZeroes("vdb", (3 * round + 2) * MiB, 100 * 512, { unmap: true });
      const copies = await guest.copyNow();
      const point = await guest.take();
      const parent = taken.at(-1)?.id ?? null;
      expect(point.level).toBe(round === 0 ? "full" : "incremental");
      expect(point.disks.map((disk) => disk.parent)).toEqual([parent, parent]);
      expect(point.retiredCheckpoints).toEqual(round === 2 ? [taken[1]?.checkpoint] : []);
      await guest.expectNothingLeft();
      taken.push({ ...point, copies });
    }
    for (const { id, copies } of taken) await guest.expectPoint(id, copies);
    // The checkpoints of the last point and the last full one stay: differentials start from the latter.
    expect(await guest.checkpoints()).toEqual([taken[0]?.checkpoint, taken[2]?.checkpoint]);
    expectExit(await nbdpull("verify", guest.repo), 0);
  }, 480_000);

  it("bases differentials on the last full one and increments on the last point, and keeps copies out of the chain", async () => {
    const { lab } = guest;
    await lab.write("vda", 0, 4 * MiB, 0x31);
    const full = await guest.take("--level", "full");
    await lab.write("vda", 8 * MiB, MiB, 0x32);
    const first = await guest.take("--level", "incremental");
    await lab.write("vda", 12 * MiB, MiB, 0x33);
    const copies = await guest.copyNow();
    const copy = await guest.take("--level", "copy");
    const differential = await guest.take("--level", "differential");
    await lab.write("vda", 16 * MiB, MiB, 0x34);
    const last = await guest.take();
    expect([full, first, copy, differential, last].map(({ level }) => level)).toEqual([
      "full",
      "incremental",
      "copy",
      "differential",
      "incremental",
    ]);
    expect(copy.checkpoint).toBeNull();
    const parents = [first, differential, last].map(({ disks }) => disks[0]?.parent);
    expect(parents).toEqual([full.id, full.id, differential.id]);
    expect(differential.disks[0]?.dirtyBytes).toBe(2 * MiB);
    await guest.expectPoint(copy.id, copies);
    await guest.expectPoint(differential.id, copies);
    await guest.expectPoint(last.id, await guest.copyNow());

    expect((await guest.take("--full-every", "30")).level).toBe("incremental");
    const path = join(guest.repo, lab.domain, full.id, "point.json");
    const month = new Date(Date.now() - 31 * 24 * 3600 * 1000).toISOString();
    await writeFile(path, (await readFile(path, "utf8")).replace(/(?<="createdAt": ?")[^"]*/, month));
    expect((await guest.take("--full-every", "30")).level).toBe("full");
    expect((await guest.take("--full-every", "30")).level).toBe("incremental");
  }, 480_000);

  it("takes no full backup if an increment was requested and has no base", async () => {
    for (const level of ["incremental", "differential"]) {
      const ran = await guest.run("--level", level);
      expectExit(ran, 4);
      expect(ran.json()).toMatchObject({ error: { code: "E_NO_BASE" } });
    }
    expect(await guest.checkpoints()).toEqual([]);
    await guest.expectNothingLeft();
  });

  it("backs up the chosen disks, and a new disk in full beside increments, with the reason", async () => {
    const { lab } = guest;
    await lab.write("vda", 0, MiB, 0x41);
    const first = await guest.take("--exclude", "vdb");
    expect(first.disks.map(({ name }) => name)).toEqual(["vda"]);
    await lab.write("vda", MiB, MiB, 0x42);
    await lab.write("vdb", MiB, MiB, 0x43);
    const copies = await guest.copyNow();
    const second = await guest.take();
    expect(second.disks).toMatchObject([
      { name: "vda", mode: "incremental", parent: first.id },
      { name: "vdb", mode: "full", reason: expect.stringContaining("no point") },
    ]);
    await guest.expectPoint(second.id, copies);
    await lab.write("vda", 2 * MiB, MiB, 0x44);
    const third = await guest.take("--include", "vdb");
    expect(third.disks).toMatchObject([{ name: "vdb", mode: "incremental", parent: second.id }]);
    // vda is based on the last point that contains it.
    const fourth = await guest.take();
    expect(fourth.disks.map(({ parent }) => parent)).toEqual([second.id, third.id]);
    await guest.expectPoint(fourth.id, await guest.copyNow());
    const strange = await guest.run("--include", "vdx");
    expectExit(strange, 4);
    expect(strange.json()).toMatchObject({ error: { code: "E_NO_SUCH_DISK" } });
  }, 480_000);

  it("uses an older point if the newest checkpoint is gone, and gives the reason for a full disk if none is left", async () => {
    const { lab } = guest;
    const full = await guest.take();
    await lab.write("vda", 0, MiB, 0x51);
    const second = await guest.take();
    await lab.deleteCheckpoint(second.checkpoint ?? "");
    await lab.write("vda", MiB, MiB, 0x52);
    const copies = await guest.copyNow();
    const third = await guest.take();
    expect(third.disks[0]).toMatchObject({ parent: full.id, dirtyBytes: 2 * MiB });
    await guest.expectPoint(third.id, copies);
    for (const name of await guest.checkpoints()) await lab.deleteCheckpoint(name);
    const fourth = await guest.take();
    expect(fourth).toMatchObject({
      level: "full",
      disks: [{ reason: expect.stringContaining("is gone") }, { reason: expect.stringContaining("is gone") }],
    });
  }, 480_000);

  it("backs a disk up in full if its bitmap broke or it was resized", async () => {
    const { lab } = guest;
    await lab.write("vda", 0, MiB, 0x61);
    await guest.take();
    await lab.crash();
    await lab.powerOn();
    const copies = await guest.copyNow();
    const after = await guest.take();
    expect(after.disks[0]).toMatchObject({ mode: "full", reason: expect.stringMatching(/bitmap.*broken/) });
    await guest.expectPoint(after.id, copies);
    await guest.expectNothingLeft();
    await virsh("blockresize", lab.domain, "vdb", "64M");
    const resized = await guest.take();
    expect(resized.disks).toMatchObject([
      { name: "vda", mode: "incremental", parent: after.id },
      { name: "vdb", mode: "full", reason: expect.stringContaining("resized") },
    ]);
    await guest.expectPoint(resized.id, await guest.copyNow());
  }, 480_000);

  it("backs a disk up in full if its image was replaced, and leaves no bitmap behind in the others", async () => {
    const { lab } = guest;
    const full = await guest.take();
    await lab.write("vda", 0, MiB, 0x65);
    const second = await guest.take();
    await lab.powerOff();
    await qemuImg("create", "-q", "-f", "qcow2", lab.image("vdb"), String(lab.sizes.vdb));
    await lab.powerOn();
    await lab.write("vdb", 0, MiB, 0x66);
    const copies = await guest.copyNow();
    const third = await guest.take();
    expect(third.disks).toMatchObject([
      { name: "vda", mode: "incremental", parent: second.id },
      { name: "vdb", mode: "full", reason: expect.stringMatching(/lost or broken/) },
    ]);
    await guest.expectPoint(third.id, copies);
    expect(third.warnings).toEqual([]);
    expect(third.retiredCheckpoints).toEqual([second.checkpoint]);
    await lab.powerOff();
    const info = JSON.parse(await qemuImg("info", "--output=json", lab.image("vda"))) as object;
    const bitmaps = [full, third].map(({ checkpoint }) => ({ name: checkpoint }));
    expect(info).toMatchObject({ "format-specific": { data: { bitmaps } } });
  }, 480_000);

  it("bases an increment on a point of attach, and leaves foreign checkpoints alone", async () => {
    const { lab } = guest;
    await lab.write("vda", 0, MiB, 0x71);
    {
      await using _ = await lab.beginBackup({ checkpoint: "theirs" });
      const attached = await nbdpull("attach", lab.domain, "--to", guest.repo, "--checkpoint", "theirs");
      expectExit(attached, 0);
    }
    const second = await guest.take();
    const third = await guest.take();
    expect([second.level, third.level]).toEqual(["incremental", "incremental"]);
    expect(third.retiredCheckpoints).toEqual([second.checkpoint]);
    expect(await guest.checkpoints()).toEqual([third.checkpoint, "theirs"]);
    await guest.expectPoint(third.id, await guest.copyNow());
  }, 480_000);
});

await describeWithLibvirt("backup of several domains", () => {
  it("handles one after the other over TCP, continues after a failure, and exits with the worst code", async () => {
    await using guest = await BackupLab.start();
    await guest.lab.write("vda", 0, MiB, 0x91);
    const copies = await guest.copyNow();
    const args = guest.arguments("--server", `tcp:${await freePort()}`);
    const ran = await nbdpull(...args.toSpliced(1, 0, "no-such-domain"));
    expectExit(ran, 4);
    expect(ran.stderr).toContain("no-such-domain");
    const { domains } = ran.json() as { domains: readonly { id: string }[] };
    expect(domains).toMatchObject([
      { domain: "no-such-domain", error: { code: "E_NO_SUCH_DOMAIN" } },
      { domain: guest.lab.domain, level: "full" },
    ]);
    await guest.expectPoint(domains[1]?.id ?? "", copies);
    await guest.expectNothingLeft();
    const neither = await nbdpull("backup", "--to", guest.repo);
    expectExit(neither, 2);

    const twice = await nbdpull(
      ...guest.arguments("--exclude", "vdb", "--exclude", "vdx").toSpliced(1, 0, guest.lab.uuid),
    );
    expectExit(twice, 0);
    expect(twice.stderr).toContain(`${guest.lab.uuid} and ${guest.lab.domain} are the same domain`);
    expect(twice.json()).toMatchObject({
      disks: [{ name: "vda", mode: "incremental" }],
      warnings: [`--exclude vdx leaves nothing out: ${guest.lab.domain} has no disk vdx`],
    });
    expect(await guest.points()).toHaveLength(2);
  }, 480_000);
});

await describeWithLibvirt("backup of a domain whose QEMU is not root", () => {
  it("gives QEMU's user a private folder for socket and scratch files", async () => {
    await using guest = await BackupLab.start({ unprivileged: true });
    await chmod(guest.scratch, 0o711);
    for (const disk of LAB_DISKS) await guest.lab.write(disk, MiB, 20 * MiB, 0xa1);
    const run = await guest.startSlowly();
    const [folder = ""] = await readdir(guest.scratch);
    const { uid, mode } = await stat(join(guest.scratch, folder, "qemu"));
    expect(uid).not.toBe(0);
    expect(mode & 0o777).toBe(0o700);
    run.kill("SIGTERM");
    expectExit(await finished(run), 143);
    await guest.expectNothingLeft();
    const full = await guest.take();
    await guest.lab.writeZeroes("vda", 2 * MiB, MiB);
    const increment = await guest.take();
    expect(increment.disks[0]).toMatchObject({ parent: full.id, dirtyBytes: MiB });
    await guest.lab.powerOff();
    const vda = join(guest.folder, "vda.raw");
    await qemuImg("convert", "-O", "raw", guest.lab.image("vda"), vda);
    await guest.expectPoint(increment.id, { vda });
  }, 480_000);
});

await describeWithLibvirt("backup of a domain with a raw disk", () => {
  it("backs it up in full each time, and says why", async () => {
    await using guest = await BackupLab.start({ formats: { vdb: "raw" } });
    const { lab } = guest;
    await lab.write("vdb", 0, MiB, 0x81);
    const first = await guest.take();
    await lab.write("vdb", MiB, MiB, 0x82);
    const second = await guest.take();
    expect(second.disks).toMatchObject([
      { name: "vda", mode: "incremental", parent: first.id },
      { name: "vdb", mode: "full", reason: expect.stringContaining("raw") },
    ]);
    await guest.expectPoint(second.id, await guest.copyNow());
  }, 480_000);
});
