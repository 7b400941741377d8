import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type BackupJson, BackupLab, expectExit } from "../support/backup-lab.js";
import { describeWithLibvirt, type Lab, virsh } from "../support/libvirt-lab.js";
import { nbdpull } from "../support/nbdpull.js";

/** Firmware that halts at once: QEMU accepts any whose size is a whole number of blocks. */
const FIRMWARE = Buffer.alloc(256 * 1024, 0xf4);
const VARIABLES = Buffer.alloc(128 * 1024, 0x5a);

interface WithFiles extends BackupJson {
  readonly files: readonly { readonly role: string; readonly file: string; readonly source: string | null }[];
  readonly notKept: readonly { readonly what: string }[];
}

/** Gives the lab's domain its own firmware and variables. */
async function addFirmware(lab: Lab): Promise<string> {
  const nvram = join(lab.folder, "lab_VARS.fd");
  await writeFile(join(lab.folder, "code.fd"), FIRMWARE);
  await writeFile(nvram, VARIABLES);
  await lab.powerOff();
  const loader = `<loader readonly='yes' type='pflash'>${join(lab.folder, "code.fd")}</loader>`;
  await lab.redefine((xml) =>
    xml.replace("</os>", `${loader}<nvram>${nvram}</nvram></os><features><acpi/></features>`),
  );
  await lab.powerOn();
  return nvram;
}

await describeWithLibvirt("the files that a domain boots with", () => {
  it("are kept by backup and attach, restored beside the disks, and used by a new domain", async () => {
    await using guest = await BackupLab.start();
    const { lab, repo } = guest;
    const nvram = await addFirmware(lab);
    const first = (await guest.take()) as WithFiles;
    expect(first.warnings).toEqual([]);
    expect(first.files).toMatchObject([
      { role: "definition", file: "domain.xml" },
      { role: "nvram", file: "nvram.fd", source: nvram },
    ]);
    // As the firmware would do.
    await writeFile(nvram, Buffer.alloc(VARIABLES.length, 0x6b));
    {
      await using _ = await lab.beginBackup({ checkpoint: "theirs", incremental: first.checkpoint ?? "" });
      expectExit(await nbdpull("attach", lab.domain, "--to", repo, "--checkpoint", "theirs"), 0);
    }
    const points = await guest.points();
    expect(points.map(({ files }) => files?.length)).toEqual([2, 2]);
    expect((await nbdpull("points", repo, "--long")).stdout).toContain("kept too: nvram (128 KiB)");

    const plain = join(guest.folder, "plain");
    expectExit(await nbdpull("restore", repo, "--to", plain, "--at", first.id), 0);
    expect((await readdir(plain)).sort()).toEqual(["nvram.fd", "vda.qcow2", "vdb.qcow2"]);
    expect((await readFile(join(plain, "nvram.fd"))).equals(VARIABLES)).toBe(true);

    const to = join(guest.folder, "restored");
    const name = `${lab.domain}-booted`;
    try {
      const ran = await nbdpull(
        "restore",
        repo,
        "--to",
        to,
        `--define=${name}`,
        "--trust-definition",
        "--json",
      );
      expectExit(ran, 0);
      const path = join(to, "nvram.fd");
      expect(ran.json()).toMatchObject({ files: [{ role: "nvram", path }] });
      expect((await readFile(path)).equals(Buffer.alloc(VARIABLES.length, 0x6b))).toBe(true);
      await virsh("start", name);
      const xml = await virsh("dumpxml", name);
      expect(xml).toContain(`>${path}</nvram>`);
      expect(xml).not.toContain(nvram);
      // With a single disk, the file is not shared either: it is restored next to the definition.
      const one = join(guest.folder, "one");
      await mkdir(one);
      const single = ["--disk", "vda", "--to", join(one, "vda.qcow2"), "--xml", join(one, "web2.xml")];
      expectExit(await nbdpull("restore", repo, ...single), 0);
      expect((await readdir(one)).sort()).toEqual(["vda.qcow2", "web2.nvram.fd", "web2.xml"]);
      expect(await readFile(join(one, "web2.xml"), "utf8")).toContain(
        `>${join(one, "web2.nvram.fd")}</nvram>`,
      );
    } finally {
      await virsh("destroy", name).catch(() => undefined);
      await virsh("undefine", "--nvram", name).catch(() => undefined);
      await rm(`/var/log/libvirt/qemu/${name}.log`, { force: true });
    }

    // A prune merges the disks of the first point into the second one, which keeps its own files.
    expectExit(await nbdpull("prune", repo, "--keep-last", "1"), 0);
    expect(await guest.points()).toMatchObject([{ id: points[1]?.id, files: points[1]?.files }]);
    expectExit(await nbdpull("verify", repo), 0);

    const stored = join(repo, lab.domain, points[1]?.id ?? "", "nvram.fd");
    const bytes = await readFile(stored);
    bytes.writeUInt8(bytes.readUInt8(1000) ^ 1, 1000);
    await writeFile(stored, bytes);
    const verified = await nbdpull("verify", repo, "--json");
    expectExit(verified, 3);
    expect(verified.json()).toMatchObject({
      points: [{ findings: [{ severity: "damage", message: "nvram.fd is not what was stored" }] }],
    });
    const late = join(guest.folder, "late");
    const refused = await nbdpull("restore", repo, "--to", late, "--json");
    expectExit(refused, 3);
    expect(refused.json()).toMatchObject({ error: { code: "E_DAMAGED", file: "nvram.fd" } });
    expect(await readdir(guest.folder)).not.toContain("late");
    expectExit(await nbdpull("restore", repo, "--disk", "vda", "--disk", "vdb", "--to", late), 0);
    expect((await readdir(late)).sort()).toEqual(["vda.qcow2", "vdb.qcow2"]);
  }, 480_000);
});
