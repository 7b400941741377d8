/** Stopped domains on block devices, where QEMU's locks keep nobody from writing. */
import { open, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { LibvirtInFront } from "../support/libvirt-in-front.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { attachLoop, describeWithLoop } from "../support/loop-device.js";
import { finished, NBDPULL, nbdpull, type Running, startNbdpull } from "../support/nbdpull.js";

const MiB = 1024 * 1024;
const SIZE = 8 * MiB + 7 * 512;

/** Puts a disk of the definition on a block device instead of its file. */
function onDevice(xml: string, file: string, device: string): string {
  const disks = xml.split("<disk ").map((disk) => {
    if (!disk.includes(`file='${file}'`)) return disk;
    return disk.replace("type='file'", "type='block'").replace(`file='${file}'`, `dev='${device}'`);
  });
  return disks.join("<disk ");
}

/** Leaves only the disk vdb in a definition, under another name; its QEMU is not root's. */
function twinOf(xml: string, name: string): string {
  const [head = "", , ...rest] = xml.split("<disk ");
  const body = [head, ...rest].join("<disk ");
  return body
    .replace(/<name>.*<\/name>/, `<name>${name}</name>`)
    .replace(/<uuid>.*?<\/uuid>|<seclabel .*?<\/seclabel>/gs, "");
}

await describeWithLibvirt("a stopped domain on a block device", () => {
  describeWithLoop("that others can use meanwhile", () => {
    it("is backed up right, or nothing is stored: it was started, written to, or is another guest's too", async () => {
      await using guest = await BackupLab.start({ formats: { vdb: "raw" }, sizes: { vda: MiB, vdb: SIZE } });
      const { lab } = guest;
      await lab.powerOff();
      await writeFile(lab.image("vdb"), Buffer.alloc(SIZE, 0x71));
      await using loop = await attachLoop(lab.image("vdb"));
      await lab.redefine((xml) => onDevice(xml, lab.image("vdb"), loop.path));
      const whole = await guest.take("--include", "vdb");
      await guest.expectPoint(whole.id, { vdb: lab.image("vdb") });

      const slowly = async (env: Record<string, string> = {}): Promise<Running> => {
        const slow = ["--include", "vdb", "--limit-rate", "4M", "--request-size", "64K"];
        const run = startNbdpull(guest.arguments(...slow), { env });
        await expect
          .poll(() => guest.beside(), { interval: 5 })
          .toContainEqual(expect.stringMatching(/\.partial$/));
        // It stands still until everything has happened that it has to notice.
        run.kill("SIGSTOP");
        return run;
      };
      const expectRefused = async (run: Running, code: string, said: string): Promise<void> => {
        run.kill("SIGCONT");
        const ran = await finished(run);
        expectExit(ran, 4);
        expect(ran.json()).toMatchObject({ error: { code, message: expect.stringContaining(said) } });
        expect(await guest.points()).toHaveLength(1);
        await guest.expectNothingLeft();
      };
      {
        // The start succeeds, since libvirt gives QEMU a device node of its own. It is off again at the end.
        const run = await slowly();
        await lab.powerOn();
        await lab.powerOff();
        await expectRefused(run, "E_DOMAIN_CHANGED", "was started or changed");
      }
      {
        const run = await slowly();
        await using device = await open(loop.path, "r+");
        await device.write(Buffer.alloc(512, 0x72), 0, 512, 4 * MiB);
        await device.close();
        await expectRefused(run, "E_DOMAIN_CHANGED", "or its disks were");
      }
      {
        // It could have been started unheard, and what the guest had written then would not be counted.
        const counts = join("/sys/block", basename(loop.path), "queue", "iostats");
        await writeFile(counts, "0");
        try {
          using front = new LibvirtInFront(guest.folder);
          const run = await slowly(front.env());
          front.leave()();
          await expectRefused(run, "E_DOMAIN_CHANGED", "could not be heard");
        } finally {
          // The next loop device of this name would have none either.
          await writeFile(counts, "1");
        }
      }
      const twin = `${lab.domain}-twin`;
      const file = join(guest.folder, "twin.xml");
      await writeFile(file, twinOf(await virsh("dumpxml", "--inactive", lab.domain), twin));
      await virsh("define", file);
      try {
        const run = await slowly();
        await virsh("start", twin);
        await expectRefused(run, "E_IMAGE_IN_USE", `which runs the guest ${twin}`);
        // Without this capability the processes of other users can't be seen.
        const blind = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-sys_ptrace", NBDPULL];
        const seen = await execa("setpriv", [...blind, ...guest.arguments()], { reject: false });
        expect(JSON.parse(seen.stdout)).toMatchObject({
          error: {
            code: "E_IMAGE_IN_USE",
            message: expect.stringContaining(`the running domain ${twin} has`),
          },
        });
        const over = ["restore", guest.repo, "--disk", "vdb", "--to", loop.path, "--force", "--json"];
        const ran = await nbdpull(...over);
        expectExit(ran, 4);
        expect(ran.json()).toMatchObject({
          error: { code: "E_TARGET_IN_USE", message: expect.stringContaining(twin) },
        });
      } finally {
        await virsh("destroy", twin).catch(() => undefined);
        await virsh("undefine", twin);
      }
      {
        // Where it would be, nothing is missed.
        using front = new LibvirtInFront(guest.folder);
        const run = await slowly(front.env());
        front.leave()();
        run.kill("SIGCONT");
        expectExit(await finished(run), 0);
        expect(await guest.points()).toHaveLength(2);
      }
      const after = await guest.take("--include", "vdb");
      await guest.expectPoint(after.id, { vdb: lab.image("vdb") });
    }, 480_000);
  });
});
