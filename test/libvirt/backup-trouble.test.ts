import { join } from "node:path";
import { expect, it } from "vitest";
import { BackupLab } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { createImage } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;
const SMALL = { sizes: { vda: 16 * MiB, vdb: MiB } };

await describeWithLibvirt("a domain with a history", () => {
  it("can have two independent repositories, a hot-added disk, and checkpoints that libvirt has forgotten", async () => {
    await using guest = await BackupLab.start(SMALL);
    const { lab } = guest;
    const other = ["--to", join(guest.folder, "other")];
    const [first, theirs] = [await guest.take(), await guest.take(...other)];
    await lab.write("vda", 0, MiB, 0x21);
    const [second, theirNext, third] = [await guest.take(), await guest.take(...other), await guest.take()];
    expect(second.disks[0]).toMatchObject({ parent: first.id, dirtyBytes: MiB });
    expect(theirNext.disks[0]).toMatchObject({ parent: theirs.id, dirtyBytes: MiB });
    expect(third.disks[0]).toMatchObject({ parent: second.id, dirtyBytes: 0 });
    const kept = [first, theirs, theirNext, third].map(({ checkpoint }) => checkpoint);
    expect((await guest.checkpoints()).toSorted()).toEqual(kept.toSorted());

    const added = join(lab.folder, "vdc.qcow2");
    await createImage(added, { format: "qcow2", size: MiB });
    await virsh("attach-disk", lab.domain, added, "vdc", "--subdriver", "qcow2", "--targetbus", "virtio");
    const withNew = await guest.take();
    expect(withNew.disks).toMatchObject([
      { name: "vda", parent: third.id },
      { name: "vdb", parent: third.id },
      { name: "vdc", mode: "full", reason: "no point with a checkpoint has this disk" },
    ]);

    // As after a migration to another host: the bitmaps are still in the images.
    for (const { checkpoint } of [first, withNew]) {
      await lab.deleteCheckpoint(checkpoint ?? "", { metadataOnly: true });
    }
    await lab.write("vda", 2 * MiB, MiB, 0x22);
    const copies = await guest.copyNow();
    const anew = await guest.take();
    expect(anew.disks[0]).toMatchObject({ mode: "full", reason: expect.stringContaining("is gone") });
    expect(anew.warnings).toEqual([]);
    await guest.expectPoint(anew.id, copies);
  }, 480_000);

  it("can have snapshots created and committed between increments, but not reverted to", async () => {
    await using guest = await BackupLab.start(SMALL);
    const { lab } = guest;
    await lab.powerOff();
    await virsh("snapshot-create-as", lab.domain, "cold");
    await lab.powerOn();
    await lab.write("vda", 0, 8 * MiB, 0x51);
    const full = await guest.take();

    await virsh("snapshot-create-as", lab.domain, "live");
    await lab.write("vda", 0, MiB, 0x52);
    const overlay = join(lab.folder, "vda.overlay.qcow2");
    const disks = ["--diskspec", `vda,file=${overlay}`, "--diskspec", "vdb,snapshot=no"];
    await virsh("snapshot-create-as", lab.domain, "--disk-only", "--no-metadata", ...disks);
    await lab.write("vda", 2 * MiB, MiB, 0x53);
    const before = await guest.copyNow();
    const onOverlay = await guest.take();
    expect(onOverlay.disks[0]).toMatchObject({ parent: full.id, dirtyBytes: 2 * MiB });
    await guest.expectPoint(onOverlay.id, before);

    await lab.write("vda", 4 * MiB, MiB, 0x54);
    await virsh("blockcommit", lab.domain, "vda", "--active", "--pivot", "--wait");
    const committed = await guest.take();
    expect(committed.disks[0]).toMatchObject({ parent: onOverlay.id, dirtyBytes: MiB });
    await guest.expectPoint(committed.id, await guest.copyNow());

    // The bitmaps would miss that change: QEMU does not revert an image with bitmaps to a snapshot.
    await lab.powerOff();
    await expect(virsh("snapshot-revert", lab.domain, "cold")).rejects.toThrow(/dirty bitmaps|checkpoint/);
  }, 480_000);
});
