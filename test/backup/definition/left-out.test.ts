import { describe, expect, it } from "vitest";
import { formatTree } from "../../../src/backup/libvirt/documents/xml-tree.js";
import { describeUnless } from "../../support/tools.js";
import { DomainSchema, hasSchemas } from "./schema-names.js";
import { definition, EMULATOR, leftOut, made, QEMU_NAMESPACE, restored } from "./untrusted-definition.js";

describe("a definition from a repository", () => {
  it.each<[string, string, string?]>([
    ["a program in the emulator's place", "<emulator>/srv/repo/evil</emulator>"],
    ["an emulator with a path that climbs", "<emulator>/usr/bin/../../srv/repo/evil</emulator>"],
    ["an emulator in a CDATA section", "<emulator><![CDATA[/srv/repo/evil]]></emulator>"],
    ["an emulator behind a comment", `<emulator>${EMULATOR}<!-- -->/srv/repo/evil</emulator>`],
    ["a script that root runs", "<interface type='ethernet'><script path='/srv/repo/evil'/></interface>"],
    [
      "a script of a bridge",
      "<interface type='bridge'><source bridge='br0'/><script path='/srv/repo/evil'/><downscript path='/srv/repo/evil'/></interface>",
    ],
    [
      "a script in another namespace",
      "<interface type='user'><x:script xmlns:x='y' path='/srv/repo/evil'/></interface>",
    ],
    [
      "a vhost-user socket",
      "<interface type='vhostuser'><source type='unix' path='/srv/repo/evil' mode='client'/></interface>",
    ],
    ["a log of passt", "<interface type='user'><backend type='passt' logFile='/srv/repo/evil'/></interface>"],
    [
      "tap and vhost devices",
      "<interface type='bridge'><source bridge='b'/><backend tap='/srv/repo/evil' vhost='/srv/repo/evil'/></interface>",
    ],
    [
      "forwarded ports",
      "<interface type='user'><portForward proto='tcp' dev='evil'><range start='22'/></portForward></interface>",
    ],
    ["a network device", "<interface type='direct'><source dev='evil' mode='bridge'/></interface>"],
    [
      "a PCI card as interface",
      "<interface type='hostdev'><source><address type='pci' domain='0' bus='0' slot='1' function='0'/></source><mac address='ee:ee:ee:ee:e0:11'/></interface>",
      "hostdev",
    ],
    ["an option ROM", "<interface type='user'><rom file='/srv/repo/evil'/></interface>"],
    [
      "a read-only disk",
      "<disk type='file'><source file='/srv/repo/evil'/><target dev='vdb'/><readonly/></disk>",
    ],
    [
      "a read-only block device",
      "<disk type='block'><source dev='/srv/repo/evil'/><target dev='vdb'/><readonly/></disk>",
    ],
    [
      "a CD",
      "<disk type='file' device='cdrom'><source file='/srv/repo/evil'/><target dev='sdb'/><readonly/></disk>",
    ],
    [
      "a CD from the network",
      "<disk type='network' device='cdrom'><source protocol='https' name='evil'><host name='evil'/></source><target dev='sdb'/></disk>",
    ],
    [
      "a disk in a volume",
      "<disk type='volume'><source pool='evil' volume='evil'/><target dev='vdb'/><readonly/></disk>",
    ],
    [
      "a vhost-user disk",
      "<disk type='vhostuser'><source type='unix' path='/srv/repo/evil'/><target dev='vdb'/><readonly/></disk>",
    ],
    [
      "an NVMe disk",
      "<disk type='nvme'><source type='pci' namespace='1'><address bus='evil'/></source><target dev='vdb'/><readonly/></disk>",
    ],
    ["a host device", "<hostdev mode='subsystem' type='usb'><source><vendor id='evil'/></source></hostdev>"],
    ["a file system", "<filesystem><source dir='/srv/repo/evil'/><target dir='x'/></filesystem>"],
    ["a virtiofs program", "<filesystem><binary path='/srv/repo/evil'/></filesystem>"],
    ["shared memory", "<shmem name='evil'><server path='/srv/repo/evil'/></shmem>"],
    ["an NVDIMM", "<memory model='nvdimm'><source><path>/srv/repo/evil</path></source><target/></memory>"],
    [
      "persistent memory",
      "<memory model='dimm'><source><path>/srv/repo/evil</path></source><target/></memory>",
    ],
    ["a serial line to a file", "<serial type='file'><source path='/srv/repo/evil'/></serial>"],
    ["a serial line to a device", "<serial type='dev'><source path='/srv/repo/evil'/></serial>"],
    ["a serial line to a pipe", "<serial type='pipe'><source path='/srv/repo/evil'/></serial>"],
    [
      "a serial line to a socket",
      "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='evil'/></serial>",
    ],
    ["a log of a console", "<console type='pty'><log file='/srv/repo/evil'/></console>"],
    [
      "a channel to a socket",
      "<channel type='unix'><source mode='connect' path='/srv/repo/evil'/><target type='virtio' name='x'/></channel>",
    ],
    [
      "a socket that the guest reaches by TCP",
      "<channel type='unix'><source mode='bind' path='/var/lib/libvirt/evil'/><target type='guestfwd' address='10.0.2.1' port='7'/></channel>",
    ],
    [
      "a log of a channel",
      "<channel type='spicevmc'><log file='/srv/repo/evil'/><target type='virtio' name='x'/></channel>",
    ],
    [
      "certificates of a smart card",
      "<smartcard mode='host-certificates'><certificate>evil</certificate><database>/srv/repo/evil</database></smartcard>",
    ],
    ["a smart card of the host", "<smartcard mode='host'/>", "smartcard"],
    [
      "redirected USB by TCP",
      "<redirdev bus='usb' type='tcp'><source mode='connect' host='evil'/></redirdev>",
    ],
    ["randomness from a file", "<rng model='virtio'><backend model='random'>/srv/repo/evil</backend></rng>"],
    [
      "randomness from a socket",
      "<rng model='virtio'><backend model='egd' type='unix'><source path='/srv/repo/evil'/></backend></rng>",
    ],
    ["a TPM of the host", "<tpm><backend type='passthrough'><device path='/srv/repo/evil'/></backend></tpm>"],
    [
      "a TPM behind a socket",
      "<tpm><backend type='external'><source type='unix' path='/srv/repo/evil'/></backend></tpm>",
    ],
    [
      "a TPM's state",
      "<tpm><backend type='emulator'><source type='dir' path='/srv/repo/evil'/></backend></tpm>",
    ],
    ["a secret of a TPM", "<tpm><backend type='emulator'><encryption secret='evil'/></backend></tpm>"],
    ["an input device", "<input type='evdev'><source dev='/srv/repo/evil'/></input>"],
    [
      "a passed input device",
      "<input type='passthrough' bus='virtio'><source evdev='/srv/repo/evil'/></input>",
    ],
    ["a screen on a socket", "<graphics type='vnc' socket='/srv/repo/evil'/>"],
    [
      "a screen for everybody",
      "<graphics type='vnc' autoport='yes' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/></graphics>",
      "0.0.0.0",
    ],
    [
      "a screen on a listening socket",
      "<graphics type='spice'><listen type='socket' socket='/srv/repo/evil'/></graphics>",
    ],
    ["a render node", "<graphics type='spice'><gl enable='yes' rendernode='/srv/repo/evil'/></graphics>"],
    ["a screen of the host", "<graphics type='sdl' display=':evil' xauth='/srv/repo/evil'/>"],
    ["a screen on the bus", "<graphics type='dbus' address='unix:path=/srv/repo/evil'/>"],
    [
      "a video helper",
      "<video><driver name='vhostuser'/><model type='virtio'><acceleration accel3d='yes' rendernode='/srv/repo/evil'/></model></video>",
      "evil",
    ],
    ["sound into a file", "<audio id='1' type='file' path='/srv/repo/evil'/>"],
    ["sound to a server", "<audio id='1' type='pulseaudio' serverName='evil'/>"],
    ["a lease", "<lease><lockspace>evil</lockspace><key>evil</key><target path='/srv/repo/evil'/></lease>"],
    ["a panic store", "<pstore backend='acpi-erst'><path>/srv/repo/evil</path></pstore>"],
    ["an unknown device", "<newdevice file='/srv/repo/evil'/>"],
    ["a path in a plain device", "<controller type='usb'><newthing path='/srv/repo/evil'/></controller>"],
    ["a keymap that climbs", "<graphics type='vnc' keymap='../../srv/repo/evil'/>"],
    [
      "a numbered slash",
      "<controller type='usb' newthing='&#47;srv/repo/evil' other='&#x00000002f;srv/repo/evil'/>",
    ],
  ])("loses %s, and the warning names it", (_what, devices, sign = "evil") => {
    expect(definition(devices)).toContain(sign);
    const { xml, warnings } = made(devices);
    expect(xml).not.toContain(sign);
    expect(warnings.join("\n")).not.toBe("");
  });

  it.each<[string, string, string?]>([
    ["QEMU's arguments", "<qemu:commandline><qemu:arg value='evil'/></qemu:commandline>"],
    [
      "QEMU's arguments under another prefix",
      `<q:commandline xmlns:q='${QEMU_NAMESPACE}'><q:arg value='evil'/></q:commandline>`,
    ],
    [
      "QEMU's arguments without a prefix",
      `<commandline xmlns='${QEMU_NAMESPACE}'><arg value='evil'/></commandline>`,
    ],
    ["properties of QEMU's devices", "<qemu:override><qemu:device alias='evil'/></qemu:override>"],
    [
      "a kernel",
      "<os><kernel>/srv/repo/evil</kernel><initrd>/srv/repo/evil</initrd><cmdline>evil</cmdline></os>",
    ],
    ["a device tree", "<os><dtb>/srv/repo/evil</dtb></os>"],
    ["a shim", "<os><shim>/srv/repo/evil</shim></os>"],
    ["an ACPI table", "<os><acpi><table type='slic'>/srv/repo/evil</table></acpi></os>"],
    ["a firmware", "<os><loader readonly='yes' type='pflash'>/srv/repo/evil</loader></os>"],
    [
      "a firmware that can be written",
      "<os><loader readonly='no' type='pflash'>/usr/share/OVMF/evil</loader></os>",
    ],
    [
      "a firmware behind a climbing path",
      "<os><loader readonly='yes'>/usr/share/OVMF/../../../srv/evil</loader></os>",
    ],
    [
      "a climbing path in numbers",
      "<os><loader readonly='yes'>/usr/share/OVMF/&#46;&#46;/&#x2e;./../srv/evil</loader></os>",
    ],
    ["a template of the NVRAM", "<os><nvram template='/srv/repo/evil'/></os>"],
    ["an NVRAM", "<os><nvram>/srv/repo/evil</nvram></os>"],
    [
      "an NVRAM on the network",
      "<os><nvram type='network'><source protocol='iscsi' name='evil'/></nvram></os>",
    ],
    ["a boot loader of the host", "<bootloader>/srv/repo/evil</bootloader>"],
    ["a container's first program", "<os><init>/srv/repo/evil</init></os>"],
    [
      "a file of the firmware's configuration",
      "<sysinfo type='fwcfg'><entry name='opt/x' file='/srv/repo/evil'/></sysinfo>",
    ],
    [
      "root as QEMU's user",
      "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>",
      "+0",
    ],
    ["no confinement", "<seclabel type='none' model='apparmor'/>", "seclabel"],
    [
      "a base label",
      "<seclabel type='dynamic' model='selinux' relabel='yes'><baselabel>evil</baselabel></seclabel>",
    ],
    ["a cgroup", "<resource><partition>/evil</partition></resource>"],
    [
      "limits of a device",
      "<blkiotune><device><path>/srv/repo/evil</path><weight>1</weight></device></blkiotune>",
    ],
    ["metadata that hooks read", "<metadata><hook:run xmlns:hook='x'>evil</hook:run></metadata>"],
    [
      "metadata that only looks like libosinfo's",
      "<metadata><libosinfo:x xmlns:libosinfo='x'>evil</libosinfo:x></metadata>",
    ],
    [
      "a quote service",
      "<launchSecurity type='tdx'><quoteGenerationService path='/srv/repo/evil'/></launchSecurity>",
    ],
    ["mapped users", "<idmap><uid start='0' target='0' count='evil'/></idmap>"],
    ["an unknown element", "<newthing>evil</newthing>"],
  ])("loses %s", (_what, around, sign = "evil") => {
    expect(definition("", around)).toContain(sign);
    const { xml, warnings } = made("", around);
    expect(xml).not.toContain(sign);
    expect(warnings.join("\n")).not.toBe("");
  });

  it("names what it left out, and says why and how to keep it", () => {
    const { warnings } = made(
      "<interface type='ethernet'><script path='/x/evil'/></interface>",
      "<newthing a='1'/>",
    );
    expect(leftOut(warnings)).toEqual([
      '<newthing a="1"> of <domain>',
      '<interface type="ethernet"> <script path="/x/evil"> of <devices>',
    ]);
    expect(warnings.at(-1)).toContain("--trust-definition");
    const many = made("<hostdev/>".repeat(1000)).warnings;
    expect(many.length).toBeLessThan(30);
    expect(leftOut(many).at(-1)).toBe("980 more");
  });

  it("is refused if it is no virtual machine", () => {
    expect(() => restored(definition("", "", "type='lxc'"))).toThrow(
      expect.objectContaining({ code: "E_UNTRUSTED_DEFINITION" }),
    );
  });
});

/** More than any attribute has listed values. */
const VARIANTS = 40;

describeUnless(
  hasSchemas ? undefined : "libvirt's schemas are not installed",
  "whatever libvirt's schema has room for",
  () => {
    const schema = hasSchemas ? new DomainSchema() : undefined;

    it.each((schema?.childrenOf("devices") ?? []).filter((name) => name !== "emulator"))(
      "names no path of the host in <%s>",
      (name) => {
        let longest = 0;
        for (let variant = 0; variant < VARIANTS; variant += 1) {
          const device = formatTree(schema?.filled("devices", name, "/srv/evil", variant) ?? fail());
          longest = Math.max(longest, device.length);
          expect(made(withTarget(device)).xml).not.toContain("/srv/evil");
        }
        expect(longest).toBeGreaterThan(name.length + 20);
      },
    );

    it.each(
      (schema?.childrenOf("domain") ?? []).filter((name) => !["name", "uuid", "devices"].includes(name)),
    )("names no path of the host in <%s> of the domain", (name) => {
      for (let variant = 0; variant < VARIANTS; variant += 1) {
        const part = formatTree(schema?.filled("domain", name, "/srv/evil", variant) ?? fail());
        const { xml } = made("", part);
        // Text that the guest or a person reads.
        const elsewhere = xml.replaceAll(/<(title|description|cmdline|entry|dhCert|session)[ >][^<]*/g, "");
        expect(elsewhere).not.toContain("/srv/evil");
      }
    });
  },
);

function fail(): never {
  throw new Error("no schema");
}

/** A disk without a proper target would be refused as a whole. */
function withTarget(device: string): string {
  return device.startsWith("<disk") ? device.replace(/<target [^>]*>/, '<target dev="vdz">') : device;
}
