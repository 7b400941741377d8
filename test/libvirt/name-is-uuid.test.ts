/** The attack: a domain gets the UUID of another as its name. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { describeWithLibvirt, Lab, virsh } from "../support/libvirt-lab.js";

await describeWithLibvirt("a domain whose name is another's UUID", () => {
  it("is the one that the name means, and the other is found by its own", async () => {
    await using lab = await Lab.start();
    const libvirt = new Libvirt({ connect: "qemu:///system" });
    expect(await libvirt.domainName(lab.uuid)).toBe(lab.domain);
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-names-"));
    const file = join(folder, "other.xml");
    const xml = `<domain type='qemu'><name>${lab.uuid}</name><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>`;
    await writeFile(file, xml);
    await virsh("define", file);
    try {
      expect(await libvirt.domainName(lab.uuid)).toBe(lab.uuid);
      expect(await libvirt.domainUuid(lab.uuid)).not.toBe(lab.uuid);
      expect(await libvirt.domainXml(lab.uuid)).toContain(`<name>${lab.uuid}</name>`);
      expect(await libvirt.domainName({ name: lab.domain, uuid: lab.uuid })).toBe(lab.domain);
      expect(await libvirt.domainUuid(lab.domain)).toBe(lab.uuid);
    } finally {
      const other = await libvirt.domainUuid(lab.uuid);
      if (other !== lab.uuid) await virsh("undefine", other);
      await rm(folder, { recursive: true });
    }
  });
});
