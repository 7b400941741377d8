import { describe, expect, it } from "vitest";
import { networksOf, restoredDomain } from "../../../src/backup/definition/restored-domain.js";
import {
  definition,
  EMULATOR,
  leftOut,
  made,
  QEMU_NAMESPACE,
  restored,
  VDA,
} from "./untrusted-definition.js";

/** What virt-install and virt-manager write for a Linux guest, as libvirt shows it while it runs. */
const USUAL = `<emulator>${EMULATOR}</emulator>
    <controller type='usb' index='0' model='qemu-xhci' ports='15'><alias name='usb'/><address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></controller>
    <controller type='pci' index='1' model='pcie-root-port'><model name='pcie-root-port'/><target chassis='1' port='0x10'/></controller>
    <interface type='network'><mac address='52:54:00:11:22:33'/><source network='default' portid='p' bridge='virbr0'/><target dev='vnet0'/><model type='virtio'/><link state='up'/></interface>
    <interface type='bridge'><mac address='52:54:00:11:22:34'/><source bridge='br0'/><virtualport type='openvswitch'><parameters interfaceid='11111111-2222-3333-4444-555555555556'/></virtualport><vlan><tag id='42'/></vlan><model type='virtio'/><driver name='vhost' queues='4'/></interface>
    <serial type='pty'><source path='/dev/pts/1'/><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <console type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/1-web/org.qemu.guest_agent.0'/><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <input type='tablet' bus='usb'><address type='usb' bus='0' port='1'/></input><input type='mouse' bus='ps2'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <graphics type='spice' port='5900' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/><image compression='off'/><gl enable='no'/></graphics>
    <sound model='ich9'><audio id='1'/></sound><audio id='1' type='spice'/>
    <video><model type='virtio' heads='1' primary='yes'/></video>
    <redirdev bus='usb' type='spicevmc'><address type='usb' bus='0' port='2'/></redirdev>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <watchdog model='itco' action='reset'/><memballoon model='virtio'><stats period='5'/></memballoon>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><vsock model='virtio'><cid auto='yes'/></vsock>`;
const USUAL_AROUND = `<title>/ web</title>
  <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"><libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo></metadata>
  <memory unit='KiB'>2097152</memory><currentMemory unit='KiB'>2097152</currentMemory><memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu placement='static' cpuset='0-3'>2</vcpu><cputune><vcpupin vcpu='0' cpuset='1'/></cputune><resource><partition>/machine</partition></resource>
  <sysinfo type='smbios'><system><entry name='serial'>s1</entry></system></sysinfo>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-8.2'>hvm</type><firmware><feature enabled='yes' name='secure-boot'/></firmware><loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader><nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/n/web_VARS.fd</nvram><kernel>/boot/k</kernel><initrd>/boot/i</initrd><cmdline>root=/dev/vda</cmdline><boot dev='hd'/><bootmenu enable='yes'/></os>
  <features><acpi/><apic/><hyperv mode='custom'><relaxed state='on'/></hyperv><smm state='on'/></features>
  <cpu mode='host-passthrough' check='none' migratable='on'><topology sockets='1' dies='1' cores='2' threads='1'/></cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock><on_poweroff>destroy</on_poweroff><on_crash>restart</on_crash>
  <pm><suspend-to-mem enabled='no'/></pm>
  <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-1</label><imagelabel>libvirt-1</imagelabel></seclabel><seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+994</label><imagelabel>+64055:+994</imagelabel></seclabel>`;

describe("a definition from a repository", () => {
  it("loses nothing that describes the guest's machine", () => {
    const files = new Map([
      ["/n/web_VARS.fd", "/r/nvram.fd"],
      ["/boot/k", "/r/kernel"],
      ["/boot/i", "/r/initrd"],
    ]);
    const xml = definition(USUAL, USUAL_AROUND);
    const { warnings, xml: made } = restored(xml, files, new Set([EMULATOR]));
    expect(warnings).toEqual([expect.stringContaining("TPM begins empty")]);
    expect(networksOf(made)).toEqual(["bridge br0", "network default"]);
    const trusted = restoredDomain(xml, "web2", {
      disks: new Map([["vda", VDA]]),
      files,
      lines: "/r/web2",
      trusted: true,
      emulators: undefined,
    });
    const withoutIds = (text: string): string =>
      text
        .replaceAll(/<uuid>[^<]*/g, "")
        .replaceAll(/mac address="[^"]*/g, "")
        .replace(` xmlns:qemu="${QEMU_NAMESPACE}"`, "");
    expect(withoutIds(made)).toBe(withoutIds(trusted.xml));
  });

  it("is said to reach the host's own services if it has a card of QEMU's user network", () => {
    const { xml } = restored(definition("<interface type='user'/>"));
    expect(networksOf(xml)).toEqual([expect.stringContaining("loopback")]);
    // As --adapt makes one where the host has not the card's network.
    const down = restored(definition("<interface type='user'><link state='down'/></interface>"));
    expect(networksOf(down.xml)).toEqual([]);
  });

  it("says nothing of what only belonged to the old domain's run", () => {
    const { xml, warnings } = made(
      "<disk type='file' device='cdrom'><target dev='sdb'/><backingStore type='file'><source file='/srv/repo/evil'/></backingStore></disk>" +
        "<channel type='unix'><source mode='bind' path='/run/libvirt/../../srv/repo/evil'/><target type='virtio' name='x'/></channel>",
    );
    expect([xml.includes("evil"), warnings]).toEqual([false, []]);
  });

  it("keeps the first of two elements where a guest has one, whichever libvirt would take", () => {
    const os =
      "<os><type machine='q35'>hvm</type><loader type='rom'>/usr/share/seabios/bios.bin</loader><loader type='rom'>/usr/share/OVMF/x.fd</loader></os>";
    const { xml, warnings } = made("", os);
    expect(xml.match(/<loader/g)).toHaveLength(1);
    expect(leftOut(warnings)).toEqual([expect.stringContaining("/usr/share/OVMF/x.fd")]);
  });

  it("gives serial lines, channels, screens and sound that were the host's something of the guest's own", () => {
    const { xml, warnings } = made(
      "<serial type='file'><source path='/var/log/web.log'/><target port='0'/></serial><sound model='ich9'><audio id='3'/></sound>" +
        "<audio id='3' type='oss'><input dev='/dev/dsp'/></audio><graphics type='vnc' port='5901' autoport='no'/>" +
        "<channel type='unix'><source mode='bind' path='/srv/sock'/><target type='virtio' name='a'/></channel>",
    );
    expect(xml).toContain('<serial type="pty"><target port="0"/></serial>');
    expect(xml).toContain('<audio id="3" type="none"/>');
    expect(xml).toContain('<graphics type="vnc" autoport="yes"/>');
    expect(xml).toContain('<channel type="unix"><target type="virtio" name="a"/></channel>');
    expect(leftOut(warnings)).toEqual([]);
    expect(warnings).toHaveLength(4);
  });

  it("may name the usual emulators if libvirt was not asked", () => {
    const emulated = (path: string): string => restored(definition(`<emulator>${path}</emulator>`)).xml;
    expect(emulated(EMULATOR)).toContain(EMULATOR);
    expect(emulated("/usr/libexec/qemu-kvm")).toContain("/usr/libexec/qemu-kvm");
    expect(emulated("/srv/qemu-system-x86_64")).not.toContain("emulator");
    expect(made("<emulator>/usr/bin/qemu-system-arm</emulator>").xml).not.toContain("emulator");
  });
});
