import { formatTree, parseTree, XmlElement } from "../libvirt/documents/xml-tree.js";

export interface RehearsalLimits {
  /** Most of its memory, in bytes. */
  readonly memory: number;
  /** Most of its virtual processors. */
  readonly cpus: number;
  /** The network of libvirt's that its cards are connected to; undefined: it has no cards. */
  readonly network: string | undefined;
  /** Where what it says on its first serial line is written; undefined: the line stays as it is. */
  readonly serialLog: string | undefined;
}

/** What leads out of the guest to this host, or to others. */
const OUTWARD = ["hostdev", "redirdev", "filesystem", "shmem", "smartcard", "vsock", "crypto", "lease"];
/** What fits only the memory and the processors that it had, and what was to follow its end. */
const OF_THE_OLD_ONE = [
  ...["iothreads", "iothreadids", "defaultiothread", "throttlegroups"],
  ...["maxMemory", "currentMemory", "vcpus", "cputune", "numatune", "memtune", "memoryBacking", "blkiotune"],
  ...["resource", "on_poweroff", "on_reboot", "on_crash"],
];

/**
 * The definition of a guest that is only to show whether it comes up: it reaches nothing outside, takes no
 * more of the host than it is allowed, and its disks' writes need not last.
 */
export function boxedDefinition(xml: string, limits: RehearsalLimits): string {
  const domain = parseTree(xml, "domain");
  const memory = Math.min(memoryOf(domain), limits.memory);
  const cpus = Math.min(Number(domain.first("vcpu")?.text) || 1, limits.cpus);
  domain.remove(...OF_THE_OLD_ONE);
  replaceText(domain, "memory", String(Math.floor(memory / 1024)), { unit: "KiB" });
  replaceText(domain, "vcpu", String(cpus), {});
  // A guest that shuts itself off, or dies, has not come up; one that restarts may.
  replaceText(domain, "on_crash", "destroy", {});
  // The cache of translated code of a guest without KVM has the size that this says.
  for (const features of domain.all("features")) features.remove("tcg");
  for (const cpu of domain.all("cpu")) cpu.remove("topology", "numa", "cache", "maxphysaddr");
  for (const devices of domain.all("devices")) {
    devices.remove(...OUTWARD);
    devices.removeWhere((device) => device.name === "memory" || isCard(device, limits.network));
    if (limits.network !== undefined) connectCards(devices, limits.network);
    for (const disk of devices.all("disk")) throwAway(disk);
    for (const device of devices.elements) takeLittle(device);
    hideScreens(devices);
    if (limits.serialLog !== undefined) listenTo(devices, limits.serialLog);
  }
  return formatTree(domain);
}

function isCard({ name }: XmlElement, network: string | undefined): boolean {
  return name === "interface" && network === undefined;
}

/** In bytes. libvirt reports KiB; other units are a user's. */
function memoryOf(domain: XmlElement): number {
  const memory = domain.first("memory");
  const unit = memory?.attributeText("unit") ?? "KiB";
  const factors: Readonly<Record<string, number>> = {
    b: 1,
    bytes: 1,
    KiB: 1024,
    MiB: 1024 ** 2,
    GiB: 1024 ** 3,
  };
  const bytes = Number(memory?.text) * (factors[unit] ?? Number.NaN);
  return Number.isFinite(bytes) ? bytes : Number.POSITIVE_INFINITY;
}

function connectCards(devices: XmlElement, network: string): void {
  for (const card of devices.all("interface")) {
    card.setAttribute("type", "network");
    card.remove(
      "virtualport",
      "vlan",
      "bandwidth",
      "filterref",
      "teaming",
      "portForward",
      "backend",
      "ip",
      "route",
    );
    card.replace(XmlElement.create("source", { network }));
  }
}

function throwAway(disk: XmlElement): void {
  const driver = disk.first("driver");
  driver?.removeAttribute("io", "cache", "error_policy", "rerror_policy");
  if ((disk.attribute("device") ?? "disk") === "disk") driver?.setAttribute("cache", "unsafe");
  disk.remove("iotune", "throttlefilters", "transient");
}

/** Threads, queues and memory of the host that a device would have beside the guest's own memory. */
function takeLittle(device: XmlElement): void {
  for (const driver of device.all("driver")) {
    driver.removeAttribute("iothread", "queues", "queue_size", "rx_queue_size", "tx_queue_size");
    driver.remove("iothreads", "metadata_cache");
  }
  for (const model of device.name === "video" ? device.all("model") : []) {
    model.removeAttribute("ram", "vram", "vram64", "vgamem", "heads", "blob");
    model.remove("acceleration", "resolution");
  }
}

/** Nobody connects to its screen. Some devices need SPICE to be there, which listens nowhere then. */
function hideScreens(devices: XmlElement): void {
  const hasSpice = devices.all("graphics").some((graphics) => graphics.attributeText("type") === "spice");
  devices.remove("graphics");
  if (!hasSpice) return;
  const graphics = XmlElement.create("graphics", { type: "spice" });
  graphics.append(XmlElement.create("listen", { type: "none" }));
  devices.append(graphics);
}

/** Its first serial line goes to a file. */
function listenTo(devices: XmlElement, path: string): void {
  const isFirst = (line: XmlElement): boolean =>
    ["serial", "console"].includes(line.name) && (line.first("target")?.attribute("port") ?? "0") === "0";
  const old = devices.all("serial").find(isFirst)?.first("target");
  devices.removeWhere(isFirst);
  const line = XmlElement.create("serial", { type: "file" });
  line.replace(XmlElement.create("source", { path }));
  line.replace(old ?? XmlElement.create("target", { port: "0" }));
  devices.append(line);
}

function replaceText(
  parent: XmlElement,
  name: string,
  text: string,
  attributes: Record<string, string>,
): void {
  const element = XmlElement.create(name, attributes);
  element.setText(text);
  parent.replace(element);
}
