import { expect, it } from "vitest";
import { findLacks } from "../../../src/backup/definition/host-lacks.js";
import { formatTree, parseTree } from "../../../src/backup/libvirt/documents/xml-tree.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { type XdrReader, XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { ScriptedLibvirt } from "../../support/scripted-libvirt.js";

const [CAPABILITIES, DOMAIN_CAPABILITIES, COMPARE_CPU] = [7, 342, 393];
const [NETWORK, IS_ACTIVE, POOL] = [46, 152, 84];
const [NO_NETWORK, NO_POOL, INCOMPATIBLE, SYSTEM_ERROR] = [43, 49, 91, 38];

/** Of a host without KVM, whose QEMU is of a distribution's. */
const HOST = `<capabilities><guest><os_type>hvm</os_type><arch name='x86_64'>
  <emulator>/usr/bin/qemu-system-x86_64</emulator>
  <machine canonical='pc-q35-7.2'>q35</machine><machine>pc-q35-7.2</machine>
  <domain type='qemu'/></arch></guest></capabilities>`;
const DOMAINS = `<domainCapabilities>
  <os supported='yes'><enum name='firmware'><value>efi</value></enum></os>
  <cpu><mode name='host-passthrough' supported='no'/><mode name='host-model' supported='yes'/>
    <mode name='custom' supported='yes'><model usable='no'>Icelake-Server</model></mode></cpu>
  <features><sev supported='no'/></features></domainCapabilities>`;
const NVRAM = "/r/web_VARS.fd";
const GUEST = `<domain type='kvm'><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' secure='yes' type='pflash'>/fw/OVMF_CODE.secboot.fd</loader><nvram template='/fw/OVMF_VARS.fd'>${NVRAM}</nvram></os>
  <cpu mode='custom' match='exact'><model>Icelake-Server</model><topology sockets='1' cores='2' threads='1'/></cpu>
  <devices><emulator>/opt/qemu</emulator>
    <interface type='network'><source network='inside'/></interface>
    <disk type='volume' device='cdrom'><source pool='isos' volume='a.iso'/><target dev='sda'/></disk>
  </devices><launchSecurity type='sev'/></domain>`;

const text = (value: string): XdrWriter => new XdrWriter().string(value);
const network = (): XdrWriter => text("any").fixed(Buffer.alloc(16));

async function lacksOf(xml: string, script = {}, { starts = true, keepsNetworks = false } = {}) {
  await using server = await ScriptedLibvirt.start({
    [CAPABILITIES]: () => text(HOST),
    [DOMAIN_CAPABILITIES]: () => text(DOMAINS),
    [COMPARE_CPU]: () => ({ refuse: INCOMPATIBLE, message: "does not provide required features: avx512f" }),
    [NETWORK]: () => ({ refuse: NO_NETWORK, message: "no network" }),
    [POOL]: () => ({ refuse: NO_POOL, message: "no pool" }),
    ...script,
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const domain = parseTree(xml, "domain");
  const isThere = async (path: string): Promise<boolean> => path.startsWith("/r/");
  const own = new Set([NVRAM]);
  const lacks = await findLacks(domain, { libvirt, own, starts, keepsNetworks, isThere });
  const told = lacks.map(
    ({ wanted, why, mend }) => `${wanted}${why ? ` (${why})` : ""} -> ${mend?.() ?? "?"}`,
  );
  return { told, xml: formatTree(domain) };
}

it("finds all that a host lacks at once, with libvirt's words for a processor, and what can stand in for it", async () => {
  const { told, xml } = await lacksOf(GUEST);
  expect(told).toEqual([
    "KVM -> a processor that QEMU emulates, which is many times slower",
    "emulator /opt/qemu -> emulator /usr/bin/qemu-system-x86_64",
    "CPU model Icelake-Server (does not provide required features: avx512f) -> CPU mode host-model",
    "firmware /fw/OVMF_CODE.secboot.fd -> UEFI firmware of libvirt's choice",
    "memory that is encrypted (SEV) -> ?",
    "volume a.iso of storage pool isos, which sda is on -> an empty drive",
    "network inside -> a network card without a cable",
  ]);
  expect(xml).toContain(`firmware="efi"`);
  // Secure Boot stays required, and the variables are the guest's own.
  expect(xml).toMatch(/<loader secure="yes" ?\/>/);
  expect(xml).toContain(`<nvram>${NVRAM}</nvram>`);
  expect(xml).toMatch(/<cpu mode="host-model"><topology /);
  expect(xml).not.toMatch(/emulator|source|template/);
});

it("takes what libvirt does not tell for something that is there", async () => {
  const untold = () => ({ refuse: SYSTEM_ERROR, message: "no connection driver" });
  const deaf = { [DOMAIN_CAPABILITIES]: untold, [COMPARE_CPU]: untold, [NETWORK]: untold, [POOL]: untold };
  const { told } = await lacksOf(
    GUEST.replace("type='kvm'", "type='qemu'").replace("/opt/qemu", "/r/qemu"),
    deaf,
  );
  expect(told).toEqual([]);
});

it("names a network that is off to who starts the guest at once, and to nobody else", async () => {
  const guest =
    "<domain><devices><interface type='network'><source network='inside'/></interface></devices></domain>";
  const off = { [NETWORK]: network, [IS_ACTIVE]: () => new XdrWriter().int(0) };
  expect((await lacksOf(guest, off)).told).toEqual([
    "network inside (it is off: virsh net-start inside) -> a network card without a cable",
  ]);
  expect((await lacksOf(guest, off, { starts: false })).told).toEqual([]);
  const on = { [NETWORK]: network, [IS_ACTIVE]: () => new XdrWriter().int(1) };
  expect((await lacksOf(guest, on)).told).toEqual([]);
});

it("tells what a card loses on the network that stands in for its own, and puts no guest of a rehearsal on that", async () => {
  const guest = `<domain><devices>
    <interface type='network'><source network='inside'/><filterref filter='clean-traffic'/><vlan><tag id='7'/></vlan></interface>
    <interface type='network'><source network='other'/></interface></devices></domain>`;
  const only = {
    [NETWORK]: (args: XdrReader) =>
      args.string() === "default" ? network() : { refuse: NO_NETWORK, message: "no network" },
    [IS_ACTIVE]: () => new XdrWriter().int(1),
  };
  const { told, xml } = await lacksOf(guest, only);
  expect(told).toEqual([
    "network inside -> network default, without its vlan, filterref",
    "network other -> network default",
  ]);
  expect(xml).not.toMatch(/filterref|vlan|inside|other/);
  const boxed = await lacksOf(guest, only, { keepsNetworks: true });
  expect(boxed.told).toEqual(["network inside -> ?", "network other -> ?"]);
  expect(boxed.xml).toContain("filterref");
});
