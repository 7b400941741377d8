/**
 * The definition room makes a definition fit for a host: one that a point has kept, of a guest that may come
 * from another host, written by whoever can write to the repository.
 *
 * Read this file first: it makes the definition of a new domain of it (character-devices.ts has its serial
 * lines). left-out.ts leaves in it only what definition-rules.ts allows. fit-to-host.ts changes what
 * host-lacks.ts finds missing here (host-offers.ts reads what the host has, nearest-machine.ts and
 * lacking-devices.ts compare, and lack.ts is one finding). try-definition.ts has libvirt try it at last, and
 * left-trials.ts removes what killed trials have left.
 *
 * This room starts nothing, and knows no repository and no disk's data.
 */

import { randomBytes, randomUUID } from "node:crypto";
import { type BootFile, moveBootFiles, wordFor } from "../libvirt/documents/boot-files.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import { formatTree, parseTree, XmlElement } from "../libvirt/documents/xml-tree.js";
import { forgetLines, isLibvirts, makeLinesOwn, moveLines } from "./character-devices.js";
import { leaveOutStrange } from "./left-out.js";

/** Where a disk of the new domain is stored. */
export interface RestoredPlace {
  readonly kind: "file" | "block";
  /** Absolute. */
  readonly path: string;
  readonly format: "qcow2" | "raw";
}

interface RestoredParts {
  /** Places of the restored disks, by their names in the domain. */
  readonly disks: ReadonlyMap<string, RestoredPlace>;
  /** New paths of restored boot files (NVRAM, kernel, …), by old path. */
  readonly files: ReadonlyMap<string, string>;
  /** What the paths of its own sockets and files for serial lines begin with: absolute. */
  readonly lines: string;
  /** Whether it may name whatever of the host the old one named. */
  readonly trusted: boolean;
  /** If not trusted, whether its emulator and firmware may be any. Default: false. */
  readonly programs?: boolean;
  /** It takes the old one's place, which is gone: with its UUID and MAC addresses. Default: false. */
  readonly keepsIdentity?: boolean;
  /** Programs that libvirt runs guests with; undefined if libvirt was not asked. */
  readonly emulators: ReadonlySet<string> | undefined;
}

interface RestoredDomain {
  readonly xml: string;
  readonly uuid: string;
  /** Files and sockets that its serial lines will make. */
  readonly lines: readonly string[];
  /** What the user should know before starting the domain. */
  readonly warnings: readonly string[];
}

/**
 * Turns the definition of a domain, running or not, into that of another domain that can exist beside the old
 * one. It has another name, UUID, generation id and MAC addresses, and its own disks. It has nothing that was
 * specific to the old domain's run or that only one domain can have. If it keeps the old one's identity, it
 * has the old UUID and MAC addresses, and `name` should be the old one.
 *
 * Disks that were not restored are left out, so that the two domains never write to the same disk.
 *
 * Whoever can write to the repository can change the definition, and libvirt runs as root. So of files,
 * devices and programs of the host, the new one names only those in `parts`, the host's firmware and
 * emulators (see `definition-rules.ts`), and what else the old one named is left out. If the definition is
 * trusted, that stays and so do unknown elements, CD drives with their media and read-only disks.
 *
 * @throws {BackupError} `E_DOMAIN_XML`, or that followed by an element's name
 * @throws {PreconditionError} `E_UNTRUSTED_DEFINITION`: it is no virtual machine, and not trusted
 */
export function restoredDomain(xml: string, name: string, parts: RestoredParts): RestoredDomain {
  const { disks: places, files, trusted, emulators } = parts;
  const known = new Set(parseDomain(xml).disks.map(({ target }) => target));
  const domain = parseTree(xml, "domain");
  const warnings: string[] = [];
  const lines: string[] = [];
  const uuid = parts.keepsIdentity ? uuidIn(domain) : randomUUID();
  for (const disk of places.keys()) {
    if (!known.has(disk)) warnings.push(`disk ${disk} is not in the point's definition: attach it by hand`);
  }
  rename(domain, name, uuid);
  for (const devices of domain.all("devices")) {
    moveDisks(devices, places, warnings);
    for (const device of devices.elements) {
      dropAlias(device);
      for (const part of device.elements) dropAlias(part);
    }
    if (!parts.keepsIdentity) renewMacs(devices);
    forgetAddresses(devices);
    forgetLines(devices);
    forgetScreens(devices);
    if (trusted) {
      lines.push(...moveLines(devices, parts.lines, warnings));
      noteShared(devices, warnings);
    } else makeOwn(devices, warnings);
  }
  const notRestored = moveBootFiles(domain, files);
  forgetFirmwareState(domain, new Set(files.values()), warnings);
  forgetLabels(domain);
  if (trusted) {
    for (const { role, path } of notRestored) {
      warnings.push(`its ${wordFor(role, path)} was not restored: the definition names the old domain's`);
    }
    if (domain.elements.some((element) => element.name === "qemu:commandline")) {
      warnings.push("its <qemu:commandline> was kept: see whether it names files of the old domain");
    }
  } else {
    forgetKernel(domain, notRestored, warnings);
    const disks = new Set([...places.values()].map(({ path }) => path));
    const own = new Set(files.values());
    warnings.push(
      ...leaveOutStrange(domain, { emulators, disks, files: own, programs: parts.programs ?? false }),
    );
  }
  return { xml: formatTree(domain), uuid, lines, warnings };
}

/** The definition of another domain that is the same in everything else. */
export function renamed(
  xml: string,
  { name, uuid }: { readonly name: string; readonly uuid: string },
): string {
  const domain = parseTree(xml, "domain");
  rename(domain, name, uuid);
  return formatTree(domain);
}

function rename(domain: XmlElement, name: string, uuid: string): void {
  domain.removeAttribute("id");
  domain.first("name")?.setText(name);
  domain.first("uuid")?.setText(uuid);
  // libvirt generates a value for an empty element. A new one tells Windows that it was set back in time.
  for (const genid of domain.all("genid")) genid.clear();
  for (const entry of domain.all("sysinfo", "system", "entry")) {
    if (entry.attribute("name") === "uuid") entry.setText(uuid);
  }
}

function moveDisks(
  devices: XmlElement,
  places: ReadonlyMap<string, RestoredPlace>,
  warnings: string[],
): void {
  devices.removeWhere((disk) => {
    if (disk.name !== "disk") return false;
    const target = disk.first("target")?.attribute("dev") ?? "";
    const place = places.get(target);
    if (place) {
      moveDisk(disk, place, warnings);
      return false;
    }
    disk.remove("backingStore", "mirror");
    for (const source of disk.all("source")) source.removeAttribute("index");
    if (disk.attribute("device") === "cdrom" || disk.first("readonly")) return false;
    warnings.push(`disk ${target} was not restored and is left out of the definition`);
    return true;
  });
}

function moveDisk(disk: XmlElement, place: RestoredPlace, warnings: string[]): void {
  const { kind, path, format } = place;
  disk.setAttribute("type", kind);
  // A disk with the device `lun` needs a LUN to pass through, which the restored disk is not.
  if (disk.attribute("device") === "lun") {
    disk.setAttribute("device", "disk");
    disk.removeAttribute("rawio", "sgio");
  }
  const wasEncrypted = disk.first("encryption") ?? disk.first("source", "encryption");
  if (wasEncrypted) {
    const target = disk.first("target")?.attribute("dev");
    warnings.push(`disk ${target} was encrypted, and what was restored is not`);
  }
  disk.remove("backingStore", "mirror", "auth", "encryption");
  const driver = disk.first("driver") ?? XmlElement.create("driver");
  driver.setAttribute("name", "qemu");
  driver.setAttribute("type", format);
  disk.replace(driver);
  disk.replace(XmlElement.create("source", kind === "file" ? { file: path } : { dev: path }));
}

/** libvirt assigns aliases at every start, except those that begin with `ua-`, which the user chose. */
function dropAlias(element: XmlElement): void {
  element.removeWhere((child) => child.name === "alias" && !child.attribute("name")?.startsWith("ua-"));
}

function uuidIn(domain: XmlElement): string {
  return domain.first("uuid")?.text.trim() ?? randomUUID();
}

function renewMacs(devices: XmlElement): void {
  const used = new Set(devices.all("interface", "mac").map((mac) => mac.attribute("address")?.toLowerCase()));
  for (const nic of devices.all("interface")) {
    for (const mac of nic.all("mac")) {
      const address = newMac(used);
      used.add(address);
      mac.setAttribute("address", address);
    }
  }
}

/** What the host has given to the old domain's run. */
function forgetAddresses(devices: XmlElement): void {
  for (const nic of devices.all("interface")) {
    for (const source of nic.all("source")) source.removeAttribute("portid");
    if (nic.attribute("type") === "network") nic.first("source")?.removeAttribute("bridge");
    for (const parameters of nic.all("virtualport", "parameters")) parameters.removeAttribute("interfaceid");
    // Names that the host assigned. libvirt drops the same ones when it defines a domain.
    nic.removeWhere(
      (child) =>
        child.name === "target" && /^(vnet|macvtap|macvlan|vif)\d/.test(child.attribute("dev") ?? ""),
    );
  }
  for (const cid of devices.all("vsock", "cid")) {
    cid.setAttribute("auto", "yes");
    cid.removeAttribute("address");
  }
}

/** A random address in QEMU's range that is not in `used`. */
function newMac(used: ReadonlySet<string | undefined>): string {
  for (;;) {
    const address = [
      "52",
      "54",
      "00",
      ...[...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, "0")),
    ];
    const text = address.join(":");
    if (!used.has(text)) return text;
  }
}

/** Removes ports and sockets of the old domain's run. Those that the user chose stay. */
function forgetScreens(devices: XmlElement): void {
  for (const graphics of devices.all("graphics")) {
    if (graphics.attribute("autoport") === "yes") graphics.removeAttribute("port", "tlsPort");
    for (const place of [graphics, ...graphics.all("listen")]) {
      if (isLibvirts(place.attribute("socket"))) place.removeAttribute("socket");
    }
  }
}

/** Warns of host resources that two running domains can't both have, or that both would write to. */
function noteShared(devices: XmlElement, warnings: string[]): void {
  for (const [, port] of fixedPorts(devices)) {
    warnings.push(`its <graphics> keeps port ${port}, which the old domain uses too`);
  }
  const kept = devices.elements.filter(
    (device) =>
      ["hostdev", "filesystem", "shmem"].includes(device.name) ||
      // A virtual NVDIMM is a file that both would write to; other modules are plain memory.
      (device.name === "memory" && device.first("source", "path")),
  );
  for (const name of new Set(kept.map((device) => device.name))) {
    warnings.push(`its <${name}> was kept: the old domain uses the same of the host`);
  }
}

function fixedPorts(devices: XmlElement): [graphics: XmlElement, port: string][] {
  return devices.all("graphics").flatMap((graphics) => {
    const port = graphics.attribute("port");
    return port === undefined || port === "-1" ? [] : [[graphics, port] as [XmlElement, string]];
  });
}

/**
 * Gives the domain terminals, sockets, ports and sound of its own in the place of those that somebody chose.
 * Without such devices the guest would see another machine.
 */
function makeOwn(devices: XmlElement, warnings: string[]): void {
  makeLinesOwn(devices, warnings);
  for (const device of devices.all("audio")) {
    const type = device.attributeText("type") ?? "";
    if (["none", "spice"].includes(type)) continue;
    warnings.push(`its sound is no longer played by ${type}`);
    device.clear();
    device.removeAttribute(...device.attributeNames.filter((name) => name !== "id"));
    device.setAttribute("type", "none");
  }
  for (const [graphics, port] of fixedPorts(devices)) {
    warnings.push(`its <graphics> gets a free port, and no longer ${port}`);
    graphics.removeAttribute("port", "tlsPort");
    graphics.setAttribute("autoport", "yes");
  }
}

/** Without its kernel, a domain starts from its disks. */
function forgetKernel(domain: XmlElement, notRestored: readonly BootFile[], warnings: string[]): void {
  const kernel = notRestored.find(({ role }) => role === "kernel");
  if (!kernel) return;
  for (const os of domain.all("os")) os.remove("kernel", "initrd", "cmdline");
  warnings.push(`its ${wordFor("kernel", kernel.path)} was not restored: it starts from its disks`);
}

const USER_NETWORK = "a user network (which reaches services of this host that listen on loopback only)";

/**
 * What the network cards of a definition are connected to: `network default`, `bridge br0`. One without a
 * cable is connected to nothing.
 */
export function networksOf(xml: string): string[] {
  const cards = parseTree(xml, "domain")
    .all("devices", "interface")
    .filter((card) => card.first("link")?.attributeText("state") !== "down");
  const names = cards.flatMap((card) =>
    card.all("source").flatMap((source) =>
      ["network", "bridge"].flatMap((kind) => {
        const name = source.attributeText(kind);
        return name === undefined ? [] : [`${kind} ${name}`];
      }),
    ),
  );
  // Such a card needs no network of libvirt's, and is easily overlooked.
  const isUsers = cards.some((card) => card.attributeText("type") === "user");
  return [...new Set([...names, ...(isUsers ? [USER_NETWORK] : [])])].sort();
}

/** @param restored paths of the new domain's own files */
function forgetFirmwareState(domain: XmlElement, restored: ReadonlySet<string>, warnings: string[]): void {
  for (const os of domain.all("os")) {
    for (const nvram of os.all("nvram")) {
      if (restored.has(nvram.text)) continue;
      nvram.clear();
      nvram.removeAttribute("type");
      warnings.push("its NVRAM is made anew at the first start: the firmware's variables were not backed up");
    }
    os.removeWhere(
      (child) => child.name === "nvram" && child.text === "" && child.attribute("template") === undefined,
    );
  }
  for (const backend of domain.all("devices", "tpm", "backend")) {
    if (backend.attribute("type") !== "emulator") continue;
    backend.remove("source");
    warnings.push("its TPM begins empty: what was sealed in the old domain's can't be opened");
  }
}

/** Removes labels that libvirt generated for one run. Labels that the user set stay. */
function forgetLabels(domain: XmlElement): void {
  for (const label of domain.all("seclabel")) {
    if (label.attribute("type") === "dynamic") label.remove("label", "imagelabel");
  }
}
