/** Disks that libvirt or QEMU treat in a way of their own: old images, volumes, empty and transient disks. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, virsh } from "../support/libvirt-lab.js";
import { nbdpull } from "../support/nbdpull.js";
import { createImage, qemuImg } from "../support/qemu-nbd.js";

const MiB = 1024 * 1024;

interface Finding {
  readonly check: string;
  readonly status: string;
  readonly cause: string;
  readonly mend?: string;
}

function disk(target: string, type: "file" | "volume", source: string, format: string, more = ""): string {
  return `<disk type='${type}' device='disk'><driver name='qemu' type='${format}'/><source ${source}/><target dev='${target}' bus='virtio'/>${more}</disk>`;
}

await describeWithLibvirt("disks of rare kinds", () => {
  it("are taken as far as they can be, and the rest is told: qcow2 v2, volumes, empty, transient, with a job", async () => {
    await using guest = await BackupLab.start({ sizes: { vdb: MiB } });
    const { lab } = guest;
    await lab.write("vda", 0, MiB, 0x41);
    await lab.powerOff();
    const folder = join(lab.folder, "pool");
    const [empty, transient] = [join(lab.folder, "empty.raw"), join(lab.folder, "transient.qcow2")];
    await mkdir(folder);
    await writeFile(empty, "");
    await createImage(transient, { format: "qcow2", size: 2 * MiB });
    const pool = `${lab.domain}-pool`;
    await virsh("pool-define-as", pool, "dir", "--target", folder);
    await using _ = { [Symbol.asyncDispose]: () => removePool(pool) };
    await virsh("pool-start", pool);
    // The default of libvirt 9 is version 2.
    await virsh("vol-create-as", pool, "old", "4M", "--format", "qcow2");
    await virsh("vol-create-as", pool, "plain", "2M", "--format", "raw");
    const old = join(folder, "old");
    await qemuImg("amend", "-f", "qcow2", "-o", "compat=0.10", old);
    await writeFile(join(folder, "plain"), Buffer.alloc(2 * MiB, 0x42));
    const volume = (name: string): string => `pool='${pool}' volume='${name}'`;
    const added = [
      disk("vdc", "volume", volume("old"), "qcow2"),
      disk("vdd", "volume", volume("plain"), "raw"),
      disk("vde", "file", `file='${empty}'`, "raw"),
      disk("vdf", "file", `file='${transient}'`, "qcow2", "<transient/>"),
    ];
    await lab.redefine((xml) => xml.replace("<controller", `${added.join("")}<controller`));

    const doctor = async (exit: number): Promise<Map<string, Finding>> => {
      const ran = await nbdpull(
        "doctor",
        lab.domain,
        "--to",
        guest.repo,
        "--scratch",
        guest.scratch,
        "--json",
      );
      expectExit(ran, exit);
      return new Map((ran.json() as Finding[]).map((finding) => [finding.check, finding]));
    };
    const expectVolumes = async (id: string): Promise<void> => {
      const target = join(guest.folder, `restored-${id}`);
      expectExit(await nbdpull("restore", guest.repo, "--at", id, "--to", target, "--format", "raw"), 0);
      await qemuImg("compare", "-f", "raw", "-F", "qcow2", join(target, "vdc.raw"), old);
      await qemuImg("compare", "-f", "raw", "-F", "raw", join(target, "vdd.raw"), join(folder, "plain"));
    };
    const isOld = expect.stringContaining("qcow2 images of version 2");
    const mend = expect.stringMatching(/^qemu-img amend -f qcow2 -o compat=v3 \S+\/pool\/old /);

    const before = await doctor(0);
    expect(before.get("disk vdc")).toMatchObject({ status: "warn", cause: isOld, mend });
    expect(before.get("disk vdd")?.cause).toContain(`volume plain of the pool ${pool}`);
    const off = await guest.take();
    expect(off.disks.map(({ name }) => name)).toEqual(["vda", "vdb", "vdc", "vdd", "vde", "vdf"]);
    expect(off).toMatchObject({ warnings: [], isRunning: false });
    await expectVolumes(off.id);
    await virsh("pool-destroy", pool);
    const lost = await guest.run();
    expectExit(lost, 4);
    expect(lost.json()).toMatchObject({
      error: { code: "E_NO_VOLUME", message: expect.stringContaining("is not active") },
    });
    expect((await doctor(4)).get("disks")).toMatchObject({ mend: "virsh pool-list --all" });

    await virsh("pool-start", pool);
    await lab.powerOn();
    const found = await doctor(0);
    expect(found.get("disk vdc")).toMatchObject({ status: "warn", mend });
    expect(found.get("disk vdf")?.cause).toMatch(/takes no part: it is transient/);
    const first = await guest.take();
    expect(first.warnings).toEqual([expect.stringMatching(/^vdf of .* is left out: it is transient/)]);
    expect(first.disks).toMatchObject([
      { name: "vda", mode: "full" },
      { name: "vdb" },
      { name: "vdc", mode: "full", reason: isOld },
      { name: "vdd", mode: "full" },
      { name: "vde", mode: "full", dirtyBytes: 0 },
    ]);
    const named = await guest.run("--include", "vdf");
    expectExit(named, 4);
    expect(named.json()).toMatchObject({ error: { code: "E_DISK_UNFIT" } });

    await virsh("blockcopy", lab.domain, "vda", join(lab.folder, "copy.qcow2"), "--transient-job");
    const copied = await guest.run("--exclude", "vdf");
    expectExit(copied, 4);
    const job = expect.stringContaining(`virsh blockjob ${lab.domain} vda`);
    expect(copied.json()).toMatchObject({ error: { code: "E_DOMAIN_BUSY", message: job } });
    expect((await doctor(4)).get("block job vda")).toMatchObject({ status: "fail", cause: job });
    await guest.expectNothingLeft();
    expect(await guest.checkpoints()).toEqual([first.checkpoint]);
    await virsh("blockjob", lab.domain, "vda", "--abort");

    // What is advised helps: the next backup is the last one that is full.
    await lab.powerOff();
    await qemuImg("amend", "-f", "qcow2", "-o", "compat=v3", old);
    await lab.powerOn();
    const full = await guest.take("--exclude", "vdf");
    expect(full).toMatchObject({ warnings: [], disks: [{ parent: first.id }, {}, { mode: "full" }, {}, {}] });
    const next = await guest.take("--exclude", "vdf");
    expect(next.disks[2]).toMatchObject({ name: "vdc", mode: "incremental", parent: full.id });
    await lab.powerOff();
    await expectVolumes(next.id);
  }, 480_000);
});

async function removePool(pool: string): Promise<void> {
  await virsh("pool-destroy", pool).catch(() => undefined);
  await virsh("pool-undefine", pool).catch(() => undefined);
}
