import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { type BackupJson, BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, LAB_DISKS, virsh } from "../support/libvirt-lab.js";
import { finished, runNbdpull } from "../support/nbdpull.js";
import { createImage } from "../support/qemu-nbd.js";
import { SshHost } from "../support/ssh-host.js";

const MiB = 1024 * 1024;

await describeWithLibvirt("a backup from another host", () => {
  it("connects through ssh or directly, opens ssh again if it is lost or commits nothing, and clears away what a killed backup left", async () => {
    await using host = await SshHost.start();
    await using guest = await BackupLab.start();
    guest.start = { inside: host.inside(guest.scratch) };
    const remote = ["--connect", host.uri];
    for (const disk of LAB_DISKS) await guest.lab.write(disk, 0, 20 * MiB, 0x11);

    const full = await guest.take(...remote);
    await guest.expectNothingLeft();
    await guest.lab.write("vda", 0, 16 * MiB, 0x12);
    const cut = await guest.startSlowly(...remote, "--reconnect", "0");
    await host.cut();
    const lost = await finished(cut);
    expectExit(lost, 1);
    expect(lost.json()).toMatchObject({ error: { code: "E_SSH_LOST" } });
    await guest.expectNothingLeft();
    expect(await guest.checkpoints()).toEqual([full.checkpoint]);

    const frozen = await guest.copyNow();
    const goesOn = await guest.startSlowly(...remote, "--limit-rate", "3M");
    await host.cut();
    const went = await finished(goesOn);
    expectExit(went, 0);
    const kept = went.json() as BackupJson;
    expect(kept.disks[0]).toMatchObject({
      parent: full.id,
      outages: { connectionsLost: expect.any(Number) },
    });
    await guest.expectPoint(kept.id, frozen);
    await guest.expectNothingLeft();

    await guest.lab.write("vda", 0, 16 * MiB, 0x14);
    const killed = await guest.startSlowly(...remote);
    killed.kill("SIGKILL");
    await killed.ended;
    expect(await readdir(guest.scratch)).toHaveLength(1);
    // This backup clears up, and connects directly to a port of the other host.
    const port = await freePort();
    const next = await guest.take(...remote, "--server", `tcp:${port}`);
    expect(next.disks[0]).toMatchObject({ parent: kept.id, dirtyBytes: 16 * MiB });
    await guest.expectNothingLeft();
    expect(await guest.checkpoints()).toEqual([full.checkpoint, next.checkpoint]);

    // Its version is looked at only once QEMU has refused to keep a bitmap in it.
    const old = join(guest.lab.folder, "old.qcow2");
    await createImage(old, { format: "qcow2", size: MiB, options: { compat: "0.10" } });
    const hotAdded = [old, "vdc", "--subdriver", "qcow2", "--targetbus", "virtio"];
    await virsh("attach-disk", guest.lab.domain, ...hotAdded);
    await guest.lab.write("vda", 18 * MiB, MiB, 0x13);
    const copies = await guest.copyNow();
    const open = ["--server", `tcp:0.0.0.0:${port}`, "--allow-remote"];
    const unreachable = await guest.run(...remote, ...open, "--host-override", "no-such-host.invalid");
    expectExit(unreachable, 4);
    expect(unreachable.json()).toMatchObject({ error: { code: "E_UNREACHABLE" } });
    const last = await guest.take(...remote, ...open);
    expect(last.disks).toMatchObject([
      { parent: next.id, dirtyBytes: MiB },
      { parent: next.id },
      { name: "vdc", mode: "full", reason: expect.stringContaining("qcow2 images of version 2") },
    ]);
    await guest.expectPoint(last.id, copies);
    await guest.expectNothingLeft();

    await using _ = await guest.lab.beginBackup();
    const attach = ["attach", guest.lab.domain, "--to", join(guest.folder, "attached"), ...remote, "--json"];
    expectExit(await runNbdpull(attach, { inside: host.inside(guest.lab.folder) }), 0);
  }, 480_000);
});
