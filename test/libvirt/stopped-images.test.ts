/** Stopped domains on a host where QEMU is not root: whose images they are, and what their headers name. */
import { chmod, chown, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, LAB_DISKS } from "../support/libvirt-lab.js";
import { nbdpull } from "../support/nbdpull.js";
import { qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;

/** What Linux says of each qemu-nbd of a group. Those of other tests come and go. */
async function statusOfServers(gid: number): Promise<string[]> {
  const { stdout } = await execa("pgrep", ["-x", "qemu-nbd"]);
  const all = stdout.split("\n").map(async (pid) => {
    const isOurs = await stat(`/proc/${pid}`).then(
      (process) => process.gid === gid,
      () => false,
    );
    return isOurs ? [await readFile(`/proc/${pid}/status`, "utf8")] : [];
  });
  return (await Promise.all(all)).flat();
}

await describeWithLibvirt("the images of a domain that is off, where QEMU is not root", () => {
  it("are backed up though only root may read them, by processes that are not root's", async () => {
    await using guest = await BackupLab.start({ unprivileged: true, formats: { vdb: "raw" } });
    const { lab } = guest;
    await lab.write("vda", 0, 8 * MiB, 0x61);
    await lab.write("vdb", MiB, MiB, 0x62);
    await chmod(guest.scratch, 0o711);
    const full = await guest.take();
    await lab.write("vda", 2 * MiB, MiB, 0x63);
    await lab.powerOff();
    const copies = { vda: join(guest.folder, "vda.raw"), vdb: lab.image("vdb") };
    await qemuImg("convert", "-f", "qcow2", "-O", "raw", lab.image("vda"), copies.vda);
    for (const disk of LAB_DISKS) {
      await chown(lab.image(disk), 0, 0);
      await chmod(lab.image(disk), 0o600);
    }
    const run = await guest.startSlowly();
    const { gid } = await stat(join(guest.scratch, (await readdir(guest.scratch))[0] ?? "", "qemu"));
    const seen = await statusOfServers(gid);
    // vda's bytes and vdb's are read by root without capabilities; vda's header by QEMU's user.
    const uids = seen.map((status) => Number(/^Uid:\s+(\d+)/m.exec(status)?.[1]));
    expect(uids.filter((uid) => uid === 0)).toHaveLength(2);
    expect(uids.filter((uid) => uid !== 0)).toHaveLength(1);
    for (const status of seen) expect(status).toMatch(/^CapEff:\s+0+$/m);
    run.kill("SIGKILL");
    await run.ended;
    const point = await guest.take();
    expect(point.disks).toMatchObject([{ parent: full.id, dirtyBytes: MiB }, { mode: "full" }]);
    await guest.expectPoint(point.id, copies);
    await guest.expectNothingLeft();
    expect((await stat(lab.image("vda"))).mode & 0o7777).toBe(0o600);
  }, 480_000);

  it("are refused if a header names a file that only root may read, and nothing is stored", async () => {
    await using guest = await BackupLab.start({ unprivileged: true });
    const { lab } = guest;
    await lab.powerOff();
    const secret = join(guest.folder, "shadow");
    await writeFile(secret, Buffer.alloc(MiB, 0x5e), { mode: 0o600 });
    await qemuImg("rebase", "-u", "-b", secret, "-F", "raw", lab.image("vda"));
    const ended = "<source file='vda'/><backingStore/>";
    for (const edit of [
      (xml: string) => xml,
      (xml: string) => xml.replace(/<source file='([^']*vda[^']*)'\/>/, ended.replace("'vda'", "'$1'")),
    ]) {
      await lab.redefine(edit);
      const ran = await guest.run();
      expectExit(ran, 4);
      expect(ran.json()).toMatchObject({ error: { code: "E_IMAGE_CHAIN", names: secret } });
    }
    expect(await guest.points()).toEqual([]);
    await guest.expectNothingLeft();
    // The same header is no obstacle once it names what may be read.
    await qemuImg("rebase", "-u", "-b", "", lab.image("vda"));
    expect(await guest.take()).toMatchObject({ level: "full" });

    // LUKS below: libvirt calls it a raw image that has encryption. Read as such it would be cipher text.
    const luks = join(lab.folder, "base.luks");
    const passphrase = join(guest.folder, "passphrase");
    await writeFile(passphrase, "geheim");
    const key = ["--object", `secret,id=s0,file=${passphrase}`, "-o", "key-secret=s0,iter-time=10"];
    await qemuImg("create", "-f", "luks", ...key, luks, "64M");
    await chmod(luks, 0o644);
    await qemuImg("rebase", "-u", "-b", luks, "-F", "raw", lab.image("vda"));
    const encryption = `<encryption format='luks'><secret type='passphrase' uuid='${lab.uuid}'/></encryption>`;
    const below = `<backingStore type='file'><format type='raw'/><source file='${luks}'>${encryption}</source><backingStore/></backingStore>`;
    await lab.redefine((xml) =>
      xml.replace("<backingStore/>", "").replace(/<source file='[^']*vda[^']*'\/>/, `$&${below}`),
    );
    const encrypted = await guest.run();
    expectExit(encrypted, 4);
    expect(encrypted.json()).toMatchObject({
      error: {
        code: "E_DISK_UNFIT",
        disk: "vda",
        message: expect.stringContaining("encrypted image in its"),
      },
    });
    const looked = await nbdpull("doctor", lab.domain, "--to", guest.repo, "--json");
    expect(looked.code).toBe(4);
    const ofDisk = (looked.json() as { check: string }[]).filter(({ check }) => check.endsWith(" vda"));
    expect(ofDisk).toMatchObject([
      { status: "fail", cause: expect.stringContaining("encrypted image in its") },
    ]);
  }, 480_000);
});
