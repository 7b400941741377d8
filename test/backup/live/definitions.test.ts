import { describe, expect, it } from "vitest";
import { restoredDomain } from "../../../src/backup/definition/restored-domain.js";
import { stopOnErrors, withPolicies } from "../../../src/backup/live/error-policies.js";
import { fileOf, openDisplays, refuseUnfillable } from "../../../src/backup/live/live-definition.js";
import { boxedDefinition } from "../../../src/backup/live/rehearsal-definition.js";
import { definition, VDA } from "../definition/untrusted-definition.js";

const DISKS = `<domain type='kvm'><devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' error_policy='enospace' cache='none' io='native'/><target dev='vda'/></disk>
  <disk type='file' device='disk'><source file='/b'/><target dev='vdb'/></disk>
  <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda'/></disk>
</devices></domain>`;

describe("the definition of a guest whose disks are filled", () => {
  it("stops at errors, and says of them what it said before when all is done, whatever else was changed", () => {
    const { xml, before } = stopOnErrors(DISKS, ["vda", "vdb"], "stop");
    expect(xml.match(/error_policy="stop"/g)).toHaveLength(4);
    expect(xml).toMatch(/<driver name="qemu" type="raw" ?\/>/);
    const added = xml.replace("<devices>", "<devices><added/>");
    const based = added.replace(/<source file="\/b" ?\/>/, "$&<backingStore/>");
    expect(based).toContain("backingStore");
    const after = withPolicies(based, before);
    expect(after).toContain("<added/>");
    expect(after).toContain('error_policy="enospace"');
    expect(after).not.toMatch(/="stop"|rerror|backingStore/);
  });

  it("tells the guest of reads that fail, if it is to go on in spite of damage", () => {
    const { xml } = stopOnErrors(DISKS, ["vdb"], "report");
    expect(xml.match(/error_policy="stop" rerror_policy="report"/g)).toHaveLength(1);
    expect(xml).toContain('error_policy="enospace"');
  });
});

describe("the definition of a guest that runs from a point", () => {
  const withDisplay = (display: string): string => `<domain><devices>${display}</devices></domain>`;

  it("has a warning for a display without a password, and for no other", () => {
    const open = withDisplay(
      "<graphics type='vnc'><listen type='address' address='127.0.0.1'/></graphics><graphics type='spice'/>",
    );
    expect(openDisplays(open)).toEqual([
      expect.stringMatching(/vnc.*127\.0\.0\.1/),
      expect.stringMatching(/spice/),
    ]);
    for (const display of [
      "<graphics type='vnc' passwd='x'/>",
      "<graphics type='spice'><listen type='none'/></graphics>",
      "<graphics type='vnc'><listen type='socket'/></graphics>",
      "<graphics type='sdl'/>",
    ]) {
      expect(openDisplays(withDisplay(display))).toEqual([]);
    }
  });

  it("has no disk that forgets what is filled in", () => {
    const xml = DISKS.replace("<target dev='vdb'/>", "<target dev='vdb'/><transient/>");
    refuseUnfillable(xml, ["vda"]);
    expect(() => refuseUnfillable(xml, ["vda", "vdb"])).toThrow("disk vdb is <transient/>");
    expect([fileOf(xml, "vda"), fileOf(xml, "vdb")]).toEqual([undefined, "/b"]);
  });
});

describe("the definition of a guest in a box", () => {
  const GUEST = `<domain type='kvm'><name>web</name><memory unit='GiB'>64</memory><currentMemory unit='GiB'>64</currentMemory>
    <maxMemory slots='16' unit='GiB'>128</maxMemory><vcpu placement='static' cpuset='1-7' current='4'>16</vcpu>
    <memoryBacking><hugepages/></memoryBacking><cputune><vcpupin vcpu='0' cpuset='1'/></cputune>
    <cpu mode='host-model'><topology sockets='1' cores='16' threads='1'/><numa><cell id='0' cpus='0-15' memory='64' unit='GiB'/></numa></cpu>
    <on_crash>restart</on_crash><devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda'/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><virtualport type='openvswitch'/><model type='virtio'/></interface>
    <hostdev mode='subsystem'/><filesystem type='mount'/><shmem name='s'/><vsock/><memory model='dimm'/>
    <serial type='pty'><target type='isa-serial' port='0'/></serial><serial type='pty'><target port='1'/></serial>
    <console type='pty'><target type='serial' port='0'/></console></devices></domain>`;
  const limits = { memory: 2 * 1024 ** 3, cpus: 2, network: undefined, serialLog: undefined };

  it("has nothing that leads out of it, and takes no more of the host than it may", () => {
    const xml = boxedDefinition(GUEST, limits);
    expect(xml).toContain('<memory unit="KiB">2097152</memory>');
    expect(xml).toContain("<vcpu>2</vcpu>");
    expect(xml).toContain("<on_crash>destroy</on_crash>");
    const gone =
      /<(interface|hostdev|filesystem|shmem|vsock|maxMemory|currentMemory|memoryBacking|cputune|topology|numa|memory model)\b/;
    expect(xml).not.toMatch(gone);
    expect(xml).toMatch(/<driver name="qemu" type="qcow2" cache="unsafe" ?\/>/);
    expect(xml.match(/cache="/g)).toHaveLength(1);
    expect(xml.match(/<serial type="pty"/g)).toHaveLength(2);
  });

  it("has nothing of this host but its emulator and firmware, even if it is trusted", () => {
    const outward = `<emulator>/opt/qemu</emulator><hostdev mode='subsystem' type='pci'/>
      <rng model='virtio'><backend model='egd' type='tcp'><source mode='connect' host='10.0.0.1' service='1'/></backend></rng>
      <tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
      <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/></disk>
      <serial type='dev'><source path='/dev/ttyS0'/></serial>`;
    const around = `<os><type>hvm</type><loader readonly='yes' type='pflash'>/opt/code.fd</loader></os>
      <qemu:commandline><qemu:arg value='-evil'/></qemu:commandline>`;
    const parts = { disks: new Map([["vda", VDA]]), files: new Map(), lines: "/r/web2", trusted: false };
    const made = restoredDomain(definition(outward, around), "web2", {
      ...{ ...parts, programs: true, emulators: undefined },
    });
    expect(made.xml).toContain("/opt/qemu");
    expect(made.xml).toContain("/opt/code.fd");
    expect(made.xml).not.toMatch(/<hostdev|evil|egd|tpm0|\/iso|ttyS0/);
  });

  it("has no display that others connect to, no threads and queues of the host's, and little video memory", () => {
    const greedy = GUEST.replace("<on_crash>", "<iothreads>64</iothreads><on_crash>").replace(
      "</devices>",
      `<graphics type='vnc' port='5900' listen='0.0.0.0'/><video><model type='qxl' vram='2097152' heads='4'/></video>
      <controller type='scsi'><driver queues='256' iothread='1'/></controller></devices>`,
    );
    const xml = boxedDefinition(greedy, limits);
    expect(xml).not.toMatch(/iothread|queues|vram|heads|graphics/);
    const spice = boxedDefinition(greedy.replace("type='vnc'", "type='spice'"), limits);
    expect(spice).toMatch(/<graphics type="spice"><listen type="none" ?\/><\/graphics>/);
    expect(spice).not.toContain("0.0.0.0");
  });

  it("keeps what is smaller, and its cards if a network is named for them; its first serial line is listened to", () => {
    const more = { ...limits, memory: 128 * 1024 ** 3, cpus: 32 };
    const xml = boxedDefinition(GUEST, { ...more, network: "quiet", serialLog: "/w/serial.log" });
    expect(xml).toContain('<memory unit="KiB">67108864</memory>');
    expect(xml).toContain("<vcpu>16</vcpu>");
    expect(xml).toMatch(
      /<interface type="network"><mac address="52:54:00:00:00:01" ?\/><source network="quiet" ?\/>/,
    );
    expect(xml).not.toMatch(/br0|virtualport|<console/);
    expect(xml).toMatch(
      /<serial type="file"><source path="\/w\/serial.log" ?\/><target type="isa-serial" port="0" ?\/><\/serial>/,
    );
    expect(xml.match(/<serial/g)).toHaveLength(2);
  });
});
