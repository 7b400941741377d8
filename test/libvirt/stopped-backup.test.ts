import { open, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, LAB_DISKS, type LabDisk, virsh } from "../support/libvirt-lab.js";
import { finished, nbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;

/** Copies of the disks of a stopped domain, made by qemu-img. */
async function copyImages(guest: BackupLab): Promise<Record<LabDisk, string>> {
  const copy = async (disk: LabDisk): Promise<string> => {
    const path = join(guest.folder, `off-${disk}-${Date.now()}.raw`);
    await qemuImg("convert", "-f", guest.lab.formats[disk], "-O", "raw", guest.lab.image(disk), path);
    return path;
  };
  return { vda: await copy("vda"), vdb: await copy("vdb") };
}

/** Processes that serve an image of the guest. */
async function servers(guest: BackupLab): Promise<string[]> {
  const { stdout } = await execa("pgrep", ["-af", `^qemu-nbd.*${guest.lab.folder}/`], { reject: false });
  return stdout.split("\n").filter((line) => line !== "");
}

async function expectNothingLeft(guest: BackupLab): Promise<void> {
  expect(await servers(guest)).toEqual([]);
  await guest.expectNothingLeft();
}

await describeWithLibvirt("backup of a domain that is off", () => {
  it("makes sibling increments that are no bases, and the running domain's next increment is right", async () => {
    await using guest = await BackupLab.start();
    const { lab } = guest;
    for (const disk of LAB_DISKS) await lab.write(disk, 0, 8 * MiB, 0x11);
    const full = await guest.take();
    await lab.write("vda", MiB, MiB, 0x22);
    await lab.writeZeroes("vdb", 2 * MiB, MiB, { unmap: true });
    await lab.powerOff();
    const off = await copyImages(guest);
    const first = await guest.take();
    const second = await guest.take("--level", "differential");
    expect([first, second]).toMatchObject([
      { level: "incremental", checkpoint: null, isRunning: false, warnings: [], retiredCheckpoints: [] },
      { level: "differential", checkpoint: null, isRunning: false, warnings: [], retiredCheckpoints: [] },
    ]);
    for (const { disks } of [first, second]) {
      expect(disks.map(({ parent }) => parent)).toEqual([full.id, full.id]);
      expect(disks.map(({ dirtyBytes }) => dirtyBytes)).toEqual([MiB, MiB]);
    }
    const some = await guest.take("--exclude", "vdb", "--level", "copy");
    expect(some).toMatchObject({ level: "copy", disks: [{ name: "vda", mode: "full" }] });
    await expectNothingLeft(guest);
    expect(await guest.checkpoints()).toEqual([full.checkpoint]);
    const listed = await nbdpull("points", guest.repo, "--long");
    expect(listed.stdout.match(/no base for increments/g)).toHaveLength(3);

    await lab.powerOn();
    await lab.write("vda", 4 * MiB, MiB, 0x33);
    // A paused guest counts as running, because its QEMU runs.
    await virsh("suspend", lab.domain);
    const online = await guest.copyNow();
    const next = await guest.take();
    expect(next.disks).toMatchObject([
      { parent: full.id, dirtyBytes: 2 * MiB },
      { parent: full.id, dirtyBytes: MiB },
    ]);
    for (const { id } of [first, second]) await guest.expectPoint(id, off);
    await guest.expectPoint(some.id, { vda: off.vda });
    await guest.expectPoint(next.id, online);
    expectExit(await nbdpull("prune", guest.repo, "--keep-last", "3"), 0);
    await guest.expectPoint(second.id, off);
    await guest.expectPoint(next.id, online);
    expectExit(await nbdpull("verify", guest.repo), 0);
  }, 480_000);

  it("keeps the domain from starting while it reads, and leaves nothing behind, however it ends", async () => {
    await using guest = await BackupLab.start({ formats: { vdb: "raw" } });
    const { lab } = guest;
    await lab.write("vda", 0, 16 * MiB, 0x41);
    await lab.write("vdb", 0, 8 * MiB, 0x42);
    await lab.powerOff();
    const copies = await copyImages(guest);
    {
      const run = await guest.startSlowly();
      await expect.poll(() => servers(guest)).toHaveLength(2);
      await expect(virsh("start", lab.domain)).rejects.toThrow(/lock/);
      const second = await guest.run();
      expectExit(second, 4);
      expect(second.json()).toMatchObject({ error: { code: "E_BACKUP_RUNNING" } });
      run.kill("SIGINT");
      expectExit(await finished(run), 130);
      await expectNothingLeft(guest);
    }
    {
      // A write despite QEMU's lock, as is possible on a file system without locks.
      const run = await guest.startSlowly("--include", "vdb", "--limit-rate", "1M");
      await using image = await open(lab.image("vdb"), "r+");
      await image.write(Buffer.alloc(512, 0x43), 0, 512, 40 * MiB);
      const ran = await finished(run);
      expectExit(ran, 4);
      expect(ran.json()).toMatchObject({ error: { code: "E_DOMAIN_CHANGED" } });
      await image.write(Buffer.alloc(512, 0), 0, 512, 40 * MiB);
      await expectNothingLeft(guest);
    }
    {
      const run = await guest.startSlowly();
      run.kill("SIGKILL");
      await run.ended;
      await expect.poll(() => servers(guest)).toEqual([]);
      expect(await readdir(guest.scratch)).toHaveLength(1);
    }
    expect(await guest.points()).toEqual([]);
    const whole = await guest.take();
    expect(whole).toMatchObject({ level: "full", warnings: [] });
    await guest.expectPoint(whole.id, copies);
    await expectNothingLeft(guest);
    await lab.powerOn();
    await virsh("managedsave", lab.domain);
    const saved = await guest.take("--include", "vda");
    expect(saved.warnings).toEqual([expect.stringMatching(/managed save is not kept/)]);
  }, 480_000);

  it("backs a disk up in full if its bitmap is unusable, and keeps boot files of a domain that never runs", async () => {
    await using guest = await BackupLab.start();
    const { lab } = guest;
    await lab.write("vda", 0, MiB, 0x51);
    const base = await guest.take();
    await lab.write("vda", MiB, MiB, 0x52);
    await lab.powerOff();
    // vdb gets another layer with a bitmap of the same name, as a snapshot of the running guest would leave
    // it.
    const overlay = join(lab.folder, "overlay.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", "-b", lab.image("vdb"), "-F", "qcow2", overlay);
    await qemuImg("bitmap", "--add", overlay, base.checkpoint ?? "");
    const boot = { kernel: join(lab.folder, "vmlinuz"), initrd: join(lab.folder, "initrd & more") };
    await writeFile(boot.kernel, "no kernel");
    await writeFile(boot.initrd, "no initrd");
    const direct = `<kernel>${boot.kernel}</kernel><initrd>${boot.initrd.replace("&", "&amp;")}</initrd></os>`;
    await lab.redefine((xml) => xml.replace(lab.image("vdb"), overlay).replace("</os>", direct));
    const spread = await guest.take();
    expect(spread).toMatchObject({
      disks: [
        { name: "vda", parent: base.id, dirtyBytes: MiB },
        { name: "vdb", mode: "full", reason: expect.stringContaining("backing chain") },
      ],
      files: [{ role: "definition" }, { role: "kernel" }, { role: "initrd" }],
    });
    const to = join(guest.folder, "restored");
    const xml = join(guest.folder, "web.xml");
    expectExit(await nbdpull("restore", guest.repo, "--to", to, "--xml", xml), 0);
    expect((await readdir(to)).sort()).toEqual(["initrd", "kernel", "vda.qcow2", "vdb.qcow2"]);
    expect(await readFile(join(to, "initrd"), "utf8")).toBe("no initrd");
    expect(await readFile(xml, "utf8")).toContain(
      `<kernel>${join(to, "kernel")}</kernel><initrd>${join(to, "initrd")}</initrd>`.replace(
        "><",
        ">\n    <",
      ),
    );

    await lab.redefine((text) =>
      text.replace(overlay, lab.image("vdb")).replaceAll(/<(kernel|initrd)>.*<.*>/g, ""),
    );
    await lab.powerOn();
    await lab.write("vda", 2 * MiB, MiB, 0x53);
    await lab.crash();
    const copies = await copyImages(guest);
    const after = await guest.take();
    expect(after).toMatchObject({
      level: "full",
      disks: [{ reason: expect.stringContaining("did QEMU die") }, {}],
    });
    await guest.expectPoint(after.id, copies);
    const none = await guest.run("--level", "incremental");
    expectExit(none, 4);
    expect(none.json()).toMatchObject({ error: { code: "E_NO_BASE" } });
    await expectNothingLeft(guest);
  }, 480_000);
});
