import { describe, expect, it } from "vitest";
import { DomainOffers } from "../../../src/backup/definition/host-offers.js";
import { lackingDevices } from "../../../src/backup/definition/lacking-devices.js";
import { formatTree, parseTree } from "../../../src/backup/libvirt/documents/xml-tree.js";

const list = (name: string, values: string): string =>
  `<enum name='${name}'>${values
    .split(" ")
    .map((value) => `<value>${value}</value>`)
    .join("")}</enum>`;
/** Of a host without SPICE and without swtpm. */
const OFFERS = new DomainOffers(
  `<domainCapabilities><devices>
    <disk supported='yes'>${list("bus", "virtio sata scsi")}</disk>
    <graphics supported='yes'>${list("type", "vnc egl-headless")}</graphics>
    <video supported='yes'>${list("modelType", "vga virtio none")}</video>
    <tpm supported='no'/>
    <channel supported='yes'>${list("type", "pty unix")}</channel>
  </devices></domainCapabilities>`,
);

function adapted(devices: string): { readonly told: string[]; readonly xml: string } {
  const domain = parseTree(`<domain><devices>${devices}</devices></domain>`, "domain");
  const told = lackingDevices(domain, OFFERS).map(({ wanted, mend }) => `${wanted} -> ${mend?.() ?? "?"}`);
  return { told, xml: formatTree(domain) };
}

describe("devices that a host has not", () => {
  it("are named, and others take their place, with what rests on them", () => {
    const { told, xml } = adapted(`
      <graphics type='spice' tlsPort='5901' autoport='yes'><listen type='address' address='127.0.0.1'/><image compression='off'/></graphics>
      <video><model type='qxl' ram='65536'/></video><audio id='1' type='spice'/>
      <channel type='spicevmc'><target name='com.redhat.spice.0'/></channel>
      <channel type='unix'><target name='org.qemu.guest_agent.0'/></channel>
      <redirdev bus='usb' type='spicevmc'/>
      <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>`);
    expect(told).toEqual([
      "<graphics> type spice -> <graphics> type vnc",
      "<video> type qxl -> <video> type virtio",
      "<tpm> type emulator -> nothing in its place",
      "<channel> type spicevmc -> nothing in its place",
    ]);
    expect(xml).toMatch(
      /<graphics type="vnc" autoport="yes"><listen type="address" address="127.0.0.1"\/><\/graphics>/,
    );
    expect(xml).toMatch(/<audio id="1" type="none"\/>/);
    expect(xml).toContain("org.qemu.guest_agent.0");
    expect(xml).not.toMatch(/spice|qxl|tpm|image/);
  });

  it("are only named, where a guest would not find its disks elsewhere", () => {
    const { told } = adapted("<disk device='disk'><target dev='hda' bus='ide'/></disk>");
    expect(told).toEqual(["<disk> bus ide -> ?"]);
  });

  it("are no devices of which libvirt says nothing, nor those that it has", () => {
    const devices = "<rng model='virtio'><backend model='egd'/></rng><video><model type='vga'/></video>";
    expect(adapted(devices).told).toEqual([]);
  });
});
