import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { describeWithLibvirt, Lab, type LabBackup, type LabDisk, virsh } from "../support/libvirt-lab.js";
import { qemuIo, startQemuNbd } from "../support/qemu-nbd.js";

/** What the other tests in this folder assume about their lab. */
await describeWithLibvirt("a lab", () => {
  it("freezes a point in time while the guest keeps writing, and offers what changed since a checkpoint", async () => {
    await using lab = await Lab.start();
    const last = lab.sizes.vdb - 512;
    await lab.write("vda", 0, 1 << 20, 0x11);
    await lab.write("vdb", last, 512, 0x22);

    const full = await lab.beginBackup({ checkpoint: "cp1" });
    await lab.write("vda", 0, 65536, 0x33);
    await lab.writeZeroes("vda", 131072, 65536, { unmap: true });
    await lab.discard("vdb", 0, 65536);
    const frozen = await readFile(await full.referenceCopy("vda"));
    expect(frozen.length).toBe(lab.sizes.vda);
    expect(frozen.subarray(0, 1 << 20).equals(Buffer.alloc(1 << 20, 0x11))).toBe(true);
    const odd = await readFile(await full.referenceCopy("vdb"));
    expect(odd.length).toBe(lab.sizes.vdb);
    expect(odd.subarray(last).equals(Buffer.alloc(512, 0x22))).toBe(true);
    await full.end();

    await using increment = await lab.beginBackup({ checkpoint: "cp2", incremental: "cp1" });
    expect(await dirty(increment, "vda")).toEqual([
      { offset: 0, length: 65536 },
      { offset: 131072, length: 65536 },
    ]);
    const changed = await readFile(await increment.referenceCopy("vda"));
    expect(changed.subarray(0, 65536).equals(Buffer.alloc(65536, 0x33))).toBe(true);
    expect(changed.subarray(131072, 196608).equals(Buffer.alloc(65536))).toBe(true);
  });

  it("runs the guest's writes one at a time, and reports a failed write", async () => {
    await using lab = await Lab.start();
    const writes = Array.from({ length: 20 }, (_, index) => lab.write("vda", 0, 65536, index));
    const outside = lab.write("vda", lab.sizes.vda, 512, 1);
    await expect(outside).rejects.toThrow(/write failed: Input\/output error/);
    await Promise.all(writes);
    await lab.powerOff();
    await qemuIo(lab.image("vda"), "qcow2", "read -P 19 0 64k");
  });

  it("mixes full and incremental disks, over TCP and under custom names", async () => {
    await using lab = await Lab.start();
    await using first = await lab.beginBackup({ checkpoint: "cp1", disks: ["vda"] });
    await first.end();
    await lab.write("vda", 1 << 20, 65536, 0x44);
    await using mixed = await lab.beginBackup({
      transport: "tcp",
      perDisk: {
        vda: { mode: "incremental", incremental: "cp1", exportName: "system disk", exportBitmap: "changed" },
        vdb: { mode: "full" },
      },
    });
    expect(await dirty(mixed, "vda", "changed")).toEqual([{ offset: 1 << 20, length: 65536 }]);
    expect((await readFile(await mixed.referenceCopy("vdb"))).length).toBe(lab.sizes.vdb);
  });

  it("backs up raw disks, which checkpoints exclude", async () => {
    await using lab = await Lab.start({ formats: { vdb: "raw" } });
    await using backup = await lab.beginBackup({ checkpoint: "cp1" });
    expect(backup.xml).toContain("<disk name='vdb' backup='yes'");
    expect(await virsh("checkpoint-dumpxml", lab.domain, "cp1", "--no-domain")).toMatch(
      /<disk name='vdb' checkpoint='no'\/>/,
    );
  });

  it("breaks bitmaps when QEMU is killed, and keeps them when the guest is stopped", async () => {
    await using lab = await Lab.start();
    await (await lab.beginBackup({ checkpoint: "cp1" })).end();
    await lab.powerOff();
    await using server = await startQemuNbd({ image: lab.image("vda"), format: "qcow2", bitmap: "cp1" });
    expect((await execa("nbdinfo", ["--map=qemu:dirty-bitmap:cp1", server.uri])).stdout).toContain("clean");
    await server.stop();

    await lab.powerOn();
    await lab.crash();
    await lab.powerOn();
    await expect(lab.beginBackup({ incremental: "cp1" })).rejects.toThrow(/missing or broken bitmap 'cp1'/);
  });

  it("leaves nothing behind", async () => {
    const lab = await Lab.start();
    await lab.beginBackup({ checkpoint: "cp1" });
    await lab.destroy();
    expect(await virsh("list", "--all", "--name")).not.toContain(lab.domain);
    expect(await readdir(join(lab.folder, ".."))).not.toContain(lab.domain);
  });
});

async function dirty(backup: LabBackup, disk: LabDisk, bitmap = `backup-${disk}`): Promise<unknown> {
  const context = `qemu:dirty-bitmap:${bitmap}`;
  const { stdout } = await execa("nbdinfo", ["--json", `--map=${context}`, backup.uri(disk)]);
  const extents: { offset: number; length: number; type: number }[] = JSON.parse(stdout);
  return extents.filter(({ type }) => type === 1).map(({ offset, length }) => ({ offset, length }));
}
