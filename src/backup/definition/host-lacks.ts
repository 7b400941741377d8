/**
 * What a definition wants and a host has not, found before anything is made of it. A guest that comes from
 * another host may want a machine, a processor, firmware, networks and devices that are not here.
 */
import { hasCode } from "../base/errors.js";
import { domainWord } from "../base/shell-word.js";
import type { Platform } from "../libvirt/documents/domain-xml.js";
import { formatTree, XmlElement } from "../libvirt/documents/xml-tree.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { errorNumberOf, saidIn } from "../libvirt/libvirt-errors.js";
import { NUMBER } from "../libvirt/rpc/errors.js";
import * as remote from "../libvirt/rpc/procedures.js";
import { archOffers, DomainOffers } from "./host-offers.js";
import type { Lack } from "./lack.js";
import { lackingDevices } from "./lacking-devices.js";
import { nearestMachine } from "./nearest-machine.js";

interface LacksOptions {
  readonly libvirt: Libvirt;
  /** Files that are made for it: they need not be there yet. */
  readonly own: ReadonlySet<string>;
  /** Whether a network that is off counts as one that is not there. */
  readonly starts: boolean;
  /** Whether nothing may stand in for a network: its cards were connected where nothing else is reached. */
  readonly keepsNetworks?: boolean | undefined;
  /**
   * Whether there is such a file, device or card (`/sys/class/net/br0`); undefined: the host is another one.
   */
  readonly isThere: ((path: string) => Promise<boolean>) | undefined;
}

/** What QEMU a definition wants, as far as it says. */
type WantedPlatform = Readonly<Partial<Record<keyof Platform, string | undefined>>>;

/**
 * Finds all of it at once. What libvirt doesn't tell is taken to be there.
 * @param domain the root of the definition, which the lacks' `mend` changes
 * @throws as {@link Libvirt} does
 */
export async function findLacks(domain: XmlElement, options: LacksOptions): Promise<Lack[]> {
  return [
    ...(await lacksOfMachine(domain, options)),
    ...(await lacksOfFiles(domain, options)),
    ...(await lacksOfNetworks(domain, options)),
  ];
}

async function lacksOfMachine(domain: XmlElement, options: LacksOptions): Promise<Lack[]> {
  const { libvirt } = options;
  const type = domain.first("os", "type");
  const arch = type?.attributeText("arch");
  const kind = domain.attributeText("type");
  if (arch === undefined || kind === undefined) return [];
  const offered = archOffers(await libvirt.capabilities(), arch);
  if (!offered) return [{ wanted: `architecture ${arch}`, why: "libvirt knows no QEMU for it here" }];
  const lacks: Lack[] = [];
  const platform = {
    arch,
    type: kind,
    emulator: undefined as string | undefined,
    machine: undefined as string | undefined,
  };

  const { types, machines } = offered;
  if (!types.has(kind)) {
    const canEmulate = types.has("qemu");
    if (canEmulate) platform.type = "qemu";
    const mend = (): string => {
      domain.setAttribute("type", "qemu");
      return "a processor that QEMU emulates, which is many times slower";
    };
    lacks.push({ wanted: kind.toUpperCase(), mend: canEmulate ? mend : undefined });
  }

  const emulator = domain.first("devices", "emulator")?.text;
  if (emulator !== undefined) {
    const isKnown = offered.emulators.has(emulator) || (await options.isThere?.(emulator)) !== false;
    if (isKnown) platform.emulator = emulator;
    else {
      const mend = (): string => {
        for (const devices of domain.all("devices")) devices.remove("emulator");
        return `emulator ${[...offered.emulators][0] ?? "of libvirt's choice"}`;
      };
      lacks.push({ wanted: `emulator ${emulator}`, mend });
    }
  }

  const machine = type?.attributeText("machine");
  const isMachine = machines.some(({ name, canonical }) => name === machine || canonical === machine);
  if (machine !== undefined && machines.length > 0 && !isMachine) {
    const nearest = nearestMachine(machine, machines);
    const mend = (): string => {
      type?.setAttribute("machine", nearest ?? machine);
      return `machine type ${nearest}`;
    };
    platform.machine = nearest;
    lacks.push({ wanted: `machine type ${machine}`, mend: nearest === undefined ? undefined : mend });
  } else platform.machine = machine;

  const said = await domainOffers(libvirt, platform);
  if (!said) return lacks;
  lacks.push(...(await lacksOfCpu(domain, said, libvirt, platform)));
  lacks.push(...(await lacksOfFirmware(domain, said, options)));
  if (
    domain.first("launchSecurity")?.attributeText("type") === "sev" &&
    said.supports("features", "sev") === false
  ) {
    lacks.push({ wanted: "memory that is encrypted (SEV)" });
  }
  return [...lacks, ...lackingDevices(domain, said)];
}

async function domainOffers(libvirt: Libvirt, platform: WantedPlatform): Promise<DomainOffers | undefined> {
  try {
    return new DomainOffers(await libvirt.domainCapabilities(platform));
  } catch (error) {
    // Whatever it refuses, it refuses the definition too.
    if (hasCode(error, "E_LIBVIRT_REFUSED")) return undefined;
    throw error;
  }
}

/** What a `<cpu>` says of the guest's own topology stays. */
const MODEL_PARTS = ["model", "vendor", "feature", "maxphysaddr"];

async function lacksOfCpu(
  domain: XmlElement,
  offers: DomainOffers,
  libvirt: Libvirt,
  platform: WantedPlatform,
): Promise<Lack[]> {
  const cpu = domain.first("cpu");
  if (!cpu) return [];
  const other = ["host-model", "maximum"].find((mode) => offers.cpuMode(mode) === true);
  const mend = (): string => {
    cpu.remove(...MODEL_PARTS);
    cpu.removeAttribute("match", "check", "migratable");
    if (other === undefined) {
      cpu.removeAttribute("mode");
      return "QEMU's own CPU model";
    }
    cpu.setAttribute("mode", other);
    return `CPU mode ${other}`;
  };
  const model = cpu.first("model")?.text;
  const mode = cpu.attributeText("mode") ?? (model === undefined ? undefined : "custom");
  if (mode === undefined) return [];
  if (mode !== "custom") {
    return offers.cpuMode(mode) === false ? [{ wanted: `CPU mode ${mode}`, mend }] : [];
  }
  if (model === undefined) return [];
  const wanted = `CPU model ${model}`;
  if (offers.cpuModels?.has(model) === false) return [{ wanted, mend }];
  if (cpu.attributeText("check") === "none") return [];
  const why = await missingOfCpu(libvirt, platform, formatTree(cpu));
  return why === undefined ? [] : [{ wanted, why, mend }];
}

/**
 * Whether the host can run a processor, as a definition's `<cpu>` says it.
 * @returns undefined: it can, or libvirt does not tell; otherwise what is missing, in libvirt's words
 */
async function missingOfCpu(
  libvirt: Libvirt,
  platform: WantedPlatform,
  cpu: string,
): Promise<string | undefined> {
  try {
    await libvirt.calls.call(remote.CONNECT_COMPARE_HYPERVISOR_CPU, { ...platform, cpu }, "");
    return undefined;
  } catch (error) {
    if (!hasCode(error, "E_LIBVIRT_REFUSED")) throw error;
    return errorNumberOf(error) === NUMBER.cpuIncompatible ? saidIn(error) : undefined;
  }
}

async function lacksOfFirmware(
  domain: XmlElement,
  offers: DomainOffers,
  { isThere, own }: LacksOptions,
): Promise<Lack[]> {
  const os = domain.first("os");
  if (!os) return [];
  const kinds = offers.values(["os"], "firmware");
  const wanted = os.attributeText("firmware");
  if (wanted !== undefined && kinds?.has(wanted) === false) return [{ wanted: `firmware ${wanted}` }];
  const loader = os.first("loader");
  const nvram = os.first("nvram");
  const template = own.has(nvram?.text ?? "") ? undefined : nvram?.attributeText("template");
  const named = [loader?.text ?? "", template ?? ""].filter((path) => path !== "" && !own.has(path));
  const missing: string[] = [];
  for (const path of named) if ((await isThere?.(path)) === false) missing.push(path);
  if (!loader || missing.length === 0) return [];
  const isBios = (loader.attributeText("type") ?? "rom") === "rom";
  const mend = (): string => {
    nvram?.removeAttribute("template", "templateFormat");
    if (nvram?.text === "") os.remove("nvram");
    const secure = loader.attributeText("secure");
    os.remove("loader");
    if (isBios) return "QEMU's own BIOS";
    os.setAttribute("firmware", "efi");
    if (secure !== undefined) os.append(XmlElement.create("loader", { secure }));
    return "UEFI firmware of libvirt's choice";
  };
  const canMend = isBios || kinds?.has("efi") === true;
  return missing.map((path, index) => {
    if (!canMend)
      return { wanted: `firmware ${path}`, why: "and no other UEFI firmware: install OVMF or AAVMF" };
    return { wanted: `firmware ${path}`, mend: index === 0 ? mend : (): string => "none of its own" };
  });
}

/** Drives and read-only disks of the old host, kernels: what was not restored and the definition names. */
async function lacksOfFiles(domain: XmlElement, { libvirt, own, isThere }: LacksOptions): Promise<Lack[]> {
  const lacks: Lack[] = [];
  for (const devices of domain.all("devices")) {
    for (const disk of devices.all("disk")) {
      const source = disk.first("source");
      const path = source?.attributeText("file") ?? source?.attributeText("dev");
      const pool = source?.attributeText("pool");
      const volume = source?.attributeText("volume");
      const target = disk.first("target")?.attributeText("dev") ?? "";
      const isDrive = ["cdrom", "floppy"].includes(disk.attributeText("device") ?? "disk");
      const mend = (): string => {
        if (!isDrive) devices.removeWhere((each) => each === disk);
        else {
          disk.setAttribute("type", "file");
          disk.remove("source");
        }
        return isDrive ? "an empty drive" : "nothing in its place";
      };
      if (path !== undefined && !own.has(path) && (await isThere?.(path)) === false) {
        lacks.push({ wanted: `${path}, which ${target} is on`, mend });
      }
      if (pool !== undefined && volume !== undefined && !(await hasVolume(libvirt, pool, volume))) {
        lacks.push({ wanted: `volume ${volume} of storage pool ${pool}, which ${target} is on`, mend });
      }
    }
  }
  for (const os of domain.all("os")) {
    const files = ["kernel", "initrd"].flatMap((name) => os.first(name)?.text ?? []);
    for (const path of files) {
      if (own.has(path) || (await isThere?.(path)) !== false) continue;
      const mend = (): string => {
        os.remove("kernel", "initrd", "cmdline", "dtb");
        return "a start from its disks";
      };
      lacks.push({ wanted: `kernel file ${path}`, mend });
    }
  }
  return lacks;
}

/** The last: a pool that is off shows no volumes. */
const NO_VOLUME: readonly (number | undefined)[] = [
  NUMBER.noStoragePool,
  NUMBER.noStorageVolume,
  NUMBER.operationInvalid,
];

async function hasVolume(libvirt: Libvirt, pool: string, name: string): Promise<boolean> {
  try {
    await libvirt.volume(pool, name);
    return true;
  } catch (error) {
    if (NO_VOLUME.includes(errorNumberOf(error))) return false;
    if (hasCode(error, "E_LIBVIRT_REFUSED")) return true;
    throw error;
  }
}

/** Where a card goes whose network is not here, if that one is on. */
const DEFAULT_NETWORK = "default";

async function lacksOfNetworks(domain: XmlElement, options: LacksOptions): Promise<Lack[]> {
  const { libvirt } = options;
  const lacks: Lack[] = [];
  const cards = domain.all("devices", "interface");
  const found = new Map<string, { readonly wanted: string; readonly why: string | undefined }>();
  const missing: XmlElement[] = [];
  for (const card of cards) {
    const lack = await lackOfCard(card, options);
    if (!lack) continue;
    found.set(lack.wanted, lack);
    missing.push(card);
  }
  if (missing.length === 0) return [];
  if (options.keepsNetworks === true) return [...found.values()];
  const hasDefault = (await stateOf(libvirt, DEFAULT_NETWORK)) === "on";
  for (const { wanted, why } of found.values()) {
    const mine = missing.filter((card) => wantedOf(card) === wanted);
    const mend = (): string => {
      const lost = new Set(mine.flatMap((card) => reconnect(card, hasDefault)));
      if (!hasDefault) return "a network card without a cable";
      return `network ${DEFAULT_NETWORK}${lost.size === 0 ? "" : `, without its ${[...lost].join(", ")}`}`;
    };
    lacks.push({ wanted, why, mend });
  }
  return lacks;
}

/** A daemon may have nothing to do with networks. */
async function stateOf(libvirt: Libvirt, network: string): Promise<"on" | "off" | "untold" | undefined> {
  try {
    return await libvirt.network(network);
  } catch (error) {
    if (hasCode(error, "E_LIBVIRT_REFUSED")) return "untold";
    throw error;
  }
}

/** What keeps a card apart from others where it is, and does not go with it to another network. */
const LIMITS = ["virtualport", "vlan", "bandwidth", "filterref"];

/**
 * libvirt 9.0 dies of a card of type `null`; one whose link is down reaches nothing either.
 * @returns which of its limits it has no more
 */
function reconnect(card: XmlElement, hasDefault: boolean): string[] {
  const lost = LIMITS.filter((name) => card.first(name) !== undefined);
  card.remove(...LIMITS, "source", "portForward", "backend", "target");
  card.setAttribute("type", hasDefault ? "network" : "user");
  if (hasDefault) card.append(XmlElement.create("source", { network: DEFAULT_NETWORK }));
  else card.replace(XmlElement.create("link", { state: "down" }));
  return lost;
}

/** What a card is on; undefined: nothing that a host could lack. */
function wantedOf(card: XmlElement): string | undefined {
  const source = card.first("source");
  const [network, bridge, device] = ["network", "bridge", "dev"].map((name) => source?.attributeText(name));
  const type = card.attributeText("type");
  if (type === "network" && network !== undefined) return `network ${network}`;
  if (type === "bridge" && bridge !== undefined) return `bridge ${bridge}`;
  if (type === "direct" && device !== undefined) return `network device ${device}`;
  return undefined;
}

async function lackOfCard(
  card: XmlElement,
  { libvirt, isThere, starts }: LacksOptions,
): Promise<{ readonly wanted: string; readonly why: string | undefined } | undefined> {
  const wanted = wantedOf(card);
  if (wanted === undefined) return undefined;
  const name = wanted.slice(wanted.lastIndexOf(" ") + 1);
  if (card.attributeText("type") === "network") {
    const network = card.first("source")?.attributeText("network") ?? "";
    const state = await stateOf(libvirt, network);
    if (state === "on" || state === "untold" || (state === "off" && !starts)) return undefined;
    return { wanted, why: state === "off" ? `it is off: virsh net-start ${domainWord(network)}` : undefined };
  }
  // Open vSwitch need not show its bridges among the host's devices.
  if (card.first("virtualport")?.attributeText("type") === "openvswitch" || name.includes("/"))
    return undefined;
  return (await isThere?.(`/sys/class/net/${name}`)) === false ? { wanted, why: undefined } : undefined;
}
