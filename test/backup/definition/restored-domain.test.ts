import { describe, expect, it } from "vitest";
import { type RestoredPlace, restoredDomain } from "../../../src/backup/definition/restored-domain.js";
import { parseDomain } from "../../../src/backup/libvirt/documents/domain-xml.js";

const UUID = "11111111-2222-3333-4444-555555555555";
const VDA: [string, RestoredPlace] = ["vda", { kind: "file", path: "/r/it's & more.qcow2", format: "qcow2" }];

function definition(devices: string, around = ""): string {
  return `<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; co</name>
  <uuid>${UUID}</uuid>
  ${around}
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='/old/vda.raw' index='1'><seclabel model='dac' relabel='no'/></source>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    ${devices}
  </devices>
</domain>
`;
}

/** What stays of a definition that is trusted; the rest is in left-out.test.ts. */
const make = (
  xml: string,
  name: string,
  disks: ReadonlyMap<string, RestoredPlace>,
  files: ReadonlyMap<string, string> = new Map(),
) => restoredDomain(xml, name, { disks, files, lines: "/r/new", trusted: true, emulators: undefined });

const made = (devices: string, around = "") => make(definition(devices, around), "new & <1>", new Map([VDA]));

describe("the definition of a restored domain", () => {
  it("has another name and UUID and the restored disk, and nothing of the old domain's run", () => {
    const { xml, uuid, warnings } = made("");
    expect(parseDomain(xml)).toEqual({
      name: "new & <1>",
      confinedBy: [],
      uuid,
      id: undefined,
      disks: [
        {
          target: "vda",
          device: "disk",
          type: "file",
          source: "/r/it's & more.qcow2",
          format: "qcow2",
          readOnly: false,
          hasIothread: false,
        },
      ],
    });
    expect(uuid).not.toBe(UUID);
    expect(xml).toContain('cache="none"');
    expect(xml).toContain('slot="0x00"');
    expect(xml).not.toMatch(/alias|backingStore|index=|seclabel|\/old\//);
    expect(warnings).toEqual([]);
  });

  it("keeps what it doesn't know, in order and character by character", () => {
    const unknown = `<metadata><a:b xmlns:a="x" t="it&apos;s" n="1&#10;2">x&#10;y &lt; <!-- c --> <![CDATA[<raw>]]></a:b></metadata>
  <cpu mode="custom"><model>x</model></cpu><odd true="true" e=""/>`;
    expect(made("", unknown).xml).toContain(unknown);
  });

  it("gives every interface another MAC address, and drops what the host assigned", () => {
    const nic = (mac: string) =>
      `<interface type='network'><mac address='${mac}'/><source network='default' portid='p' bridge='virbr0'/><target dev='vnet0'/><model type='virtio'/></interface>`;
    const { xml } = made(nic("52:54:00:11:22:33") + nic("52:54:00:44:55:66") + nic("aa:bb:cc:dd:ee:ff"));
    const macs = [...xml.matchAll(/mac address="([^"]+)"/g)].map((match) => match[1]);
    expect(new Set(macs).size).toBe(3);
    for (const mac of macs) expect(mac).toMatch(/^52:54:00(:[0-9a-f]{2}){3}$/);
    expect(macs).not.toContain("52:54:00:11:22:33");
    expect(xml).not.toMatch(/portid|virbr0|vnet0/);
    expect(xml).toContain('<source network="default"/>');
  });

  it("makes a network disk, a LUN and an encrypted disk plain files, and says what is no longer encrypted", () => {
    const devices = `<disk type='network' device='disk'><auth username='u'><secret type='ceph' uuid='x'/></auth><source protocol='rbd' name='p/x'><host name='h'/><encryption format='luks'/></source><target dev='vdb'/></disk>
    <disk type='block' device='lun' rawio='yes' sgio='unfiltered'><source dev='/dev/sdx'/><target dev='sda' bus='scsi'/></disk>`;
    const file = (name: string): RestoredPlace => ({ kind: "file", path: `/r/${name}.raw`, format: "raw" });
    const places = new Map([VDA, ["vdb", file("vdb")], ["sda", file("sda")]] as const);
    const { xml, warnings } = make(definition(devices), "new", places);
    expect(
      parseDomain(xml).disks.map(({ target, device, type, source }) => [target, device, type, source]),
    ).toEqual([
      ["vda", "disk", "file", "/r/it's & more.qcow2"],
      ["vdb", "disk", "file", "/r/vdb.raw"],
      ["sda", "disk", "file", "/r/sda.raw"],
    ]);
    expect(xml).not.toMatch(/rbd|auth|encryption|rawio|sgio|sdx/);
    expect(warnings).toEqual(["disk vdb was encrypted, and what was restored is not"]);
  });

  it("puts a disk on a block device", () => {
    const place: RestoredPlace = { kind: "block", path: "/dev/vg/new", format: "raw" };
    const { xml } = make(definition(""), "new", new Map([["vda", place]]));
    expect(xml).toContain('<disk type="block" device="disk">');
    expect(xml).toContain('<source dev="/dev/vg/new"/>');
  });

  it("leaves out disks that were not restored, except read-only ones", () => {
    const { xml, warnings } =
      made(`<disk type='file' device='disk'><source file='/old/vdb'/><target dev='vdb'/></disk>
      <disk type='file' device='floppy'><source file='/old/fd'/><target dev='fda'/></disk>
      <disk type='file' device='disk'><source file='/golden'/><target dev='vdc'/><readonly/></disk>
      <disk type='file' device='cdrom'><source file='/x.iso' index='2'/><target dev='sda'/><readonly/></disk>`);
    expect(parseDomain(xml).disks.map(({ target }) => target)).toEqual(["vda", "vdc", "sda"]);
    expect(xml).not.toContain("/old/");
    expect(warnings).toEqual([
      "disk vdb was not restored and is left out of the definition",
      "disk fda was not restored and is left out of the definition",
    ]);
  });

  it("names a restored disk that the definition does not contain", () => {
    const place: RestoredPlace = { kind: "file", path: "/r/vdz.raw", format: "raw" };
    const { warnings } = make(definition(""), "new", new Map([VDA, ["vdz", place]]));
    expect(warnings).toEqual(["disk vdz is not in the point's definition: attach it by hand"]);
  });

  it("never shares the firmware's variables, and says that they start afresh", () => {
    const os = (nvram: string) => made("", `<os><loader type='pflash'>/x.fd</loader>${nvram}</os>`);
    const path = "/var/lib/libvirt/qemu/nvram/web_VARS.fd";
    const templated = os(`<nvram template='/t.fd'>${path}</nvram>`);
    expect(templated.xml).toContain('<nvram template="/t.fd"/>');
    const plain = os(`<nvram type='file'><source file='${path}'/></nvram>`);
    expect(plain.xml).not.toContain("nvram");
    for (const { xml, warnings } of [templated, plain]) {
      expect(xml).not.toContain(path);
      expect(warnings).toEqual([expect.stringContaining("NVRAM")]);
    }
  });

  it("boots from the restored files, and names files of the old domain that it still uses", () => {
    const around = (nvram: string): string =>
      `<os><loader readonly='yes' type='pflash'>/x.fd</loader>${nvram}` +
      "<kernel>/boot/k&amp;1</kernel><initrd>/boot/initrd</initrd></os>";
    const files = new Map([
      ["/n/web_VARS.fd", "/r/nvram & co.fd"],
      ["/boot/k&1", "/r/kernel"],
    ]);
    const nvrams = [
      "<nvram template='/t.fd'>/n/web_VARS.fd</nvram>",
      "<nvram type='file' format='raw'><source file='/n/web_VARS.fd'/></nvram>",
    ];
    for (const nvram of nvrams) {
      const { xml, warnings } = make(definition("", around(nvram)), "new", new Map([VDA]), files);
      expect(xml).toMatch(/<nvram [^>]*>\/r\/nvram &amp; co\.fd<\/nvram>/);
      expect(xml).not.toContain("web_VARS");
      expect(xml).toContain("<kernel>/r/kernel</kernel><initrd>/boot/initrd</initrd>");
      expect(xml).toContain('<loader readonly="yes" type="pflash">/x.fd</loader>');
      expect(warnings).toEqual([expect.stringContaining("initrd /boot/initrd was not restored")]);
    }
  });

  it("renews IDs that identify the guest or the host's resources", () => {
    const around = `<genid>aaaaaaaa-2222-3333-4444-555555555555</genid>
      <sysinfo type='smbios'><system><entry name='serial'>s1</entry><entry name='uuid'>${UUID}</entry></system></sysinfo>`;
    const { xml, uuid } = made("<vsock model='virtio'><cid auto='no' address='3'/></vsock>", around);
    expect(xml).toContain("<genid/>");
    expect(xml).toContain(`<entry name="uuid">${uuid}</entry>`);
    expect(xml).toContain('<cid auto="yes"/>');
    expect(xml).not.toContain(UUID);
  });

  it("drops sockets and terminals that libvirt made, and names those that somebody chose", () => {
    const { xml, warnings } =
      made(`<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/3-web/a'/><target type='virtio' name='a' state='connected'/></channel>
      <console type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/><target type='serial' port='0'/></console>
      <serial type='file'><source path='/var/log/web.log'/></serial>
      <graphics type='vnc' port='5901' autoport='yes'><listen type='socket' socket='/var/lib/libvirt/qemu/domain-3-web/vnc.sock'/></graphics>
      <graphics type='spice' port='5930' autoport='no'/>`);
    expect(xml).not.toMatch(/\/run\/|pts|tty|connected|5901|vnc\.sock/);
    expect(xml).toContain("/var/log/web.log");
    expect(warnings).toEqual([
      "its <serial type='file'> was kept as it is: the old domain uses it too",
      "its <graphics> keeps port 5930, which the old domain uses too",
    ]);
  });

  it("has files and sockets of its own where the old domain's lie in libvirt's folders", () => {
    const folder = "/var/lib/libvirt/qemu";
    const { xml, warnings, lines } =
      made(`<serial type='file'><source path='${folder}/web.log' append='on'/><target port='0'/></serial>
      <serial type='unix'><source mode='bind' path='${folder}/web.sock'/></serial>
      <serial type='unix'><source mode='connect' path='${folder}/server.sock'/></serial>
      <console type='file'><source path='${folder}/web.log'/><target type='serial' port='0'/></console>
      <channel type='unix'><source mode='bind' path='${folder}/fwd'/><target type='guestfwd' address='10.0.2.1' port='7'/></channel>
      <channel type='file'><source path='${folder}/c.log'/><target type='virtio' name='c'/></channel>`);
    expect(lines).toEqual([
      "/r/new.serial0.log",
      "/r/new.serial1.sock",
      "/r/new.channel0.sock",
      "/r/new.channel1.log",
    ]);
    expect(xml).toContain('<source path="/r/new.serial0.log" append="on"/><target port="0"/>');
    expect(xml).toContain('<source path="/r/new.serial0.log"/><target type="serial" port="0"/></console>');
    expect(xml).toContain('<source mode="bind" path="/r/new.channel0.sock"/>');
    expect(xml).toContain(`<source mode="connect" path="${folder}/server.sock"/>`);
    expect(warnings).toEqual([
      expect.stringContaining("<serial type='file'> is /r/new.serial0.log now"),
      expect.stringContaining("<serial type='unix'> is /r/new.serial1.sock now"),
      expect.stringContaining("<serial type='unix'> was kept as it is"),
      expect.stringContaining("<channel type='unix'> is /r/new.channel0.sock now"),
      expect.stringContaining("<channel type='file'> is /r/new.channel1.log now"),
    ]);
  });

  it("has a log of its own of what passes a line, wherever the old domain's is", () => {
    const log = "<log file='/srv/logs/web.log' append='on'/>";
    const { xml, warnings, lines } = made(`<serial type='pty'>${log}<target port='0'/></serial>
      <console type='pty'>${log}<target type='serial' port='0'/></console>`);
    expect(lines).toEqual(["/r/new.serial0.record.log"]);
    expect(xml).not.toContain("/srv/logs");
    expect(xml.match(/<log file="\/r\/new\.serial0\.record\.log" append="on"\/>/g)).toHaveLength(2);
    expect(warnings).toEqual([
      expect.stringContaining("/r/new.serial0.record.log now, not to /srv/logs/web.log"),
    ]);
  });

  it("has a terminal where a socket's path would be too long", () => {
    const socket =
      "<serial type='unix'><source mode='bind' path='/run/libvirt/web.sock'/><protocol type='raw'/><target port='0'/></serial>";
    const parts = { disks: new Map([VDA]), files: new Map(), trusted: true, emulators: undefined };
    const { xml, warnings } = restoredDomain(definition(socket), "new", {
      ...parts,
      lines: `/${"r".repeat(99)}`,
    });
    expect(xml).toContain('<serial type="pty"><target port="0"/></serial>');
    expect(warnings).toEqual([expect.stringMatching(/terminal of its own now: .* is too long/)]);
  });

  it("names what two running domains can't share", () => {
    const { warnings } = made(
      "<hostdev mode='subsystem'/><memory model='dimm'><target/></memory><memory model='nvdimm'><source><path>/x</path></source></memory>" +
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
      "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>",
    );
    expect(warnings).toEqual([
      expect.stringContaining("<hostdev>"),
      expect.stringContaining("<memory>"),
      expect.stringContaining("TPM"),
      expect.stringContaining("<qemu:commandline>"),
    ]);
  });

  it("drops labels that were made for one run, and keeps static ones", () => {
    const label = (type: string) =>
      `<seclabel type='${type}' model='dac' relabel='yes'><label>+1:+1</label><imagelabel>+1:+1</imagelabel></seclabel>`;
    expect(made("", label("dynamic")).xml).toContain('<seclabel type="dynamic" model="dac" relabel="yes"/>');
    expect(made("", label("static")).xml).toContain("<label>+1:+1</label>");
  });

  it("is not made from anything but a domain's definition", () => {
    expect(() => make("<network/>", "new", new Map())).toThrow(/root/);
    expect(() => make("<domain><name>x</name></domain>", "new", new Map())).toThrow(/uuid/);
  });
});
