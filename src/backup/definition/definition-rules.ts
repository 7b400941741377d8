/**
 * What a domain's definition may contain that comes from a repository. The table follows libvirt's
 * documentation of the domain format, element by element. It is an allow-list: what isn't in it is left out,
 * be it dangerous (a script that root runs, a file or device of the host) or only unknown here.
 *
 * Whatever stays describes the guest's machine, except for what {@link Allowed} names, and for the networks
 * and bridges that the guest's cards are connected to.
 */
import type { XmlElement } from "../libvirt/documents/xml-tree.js";

/** The files and programs of the host that a definition may name. */
export interface Allowed {
  /** Programs that libvirt runs guests with; undefined if libvirt was not asked. */
  readonly emulators: ReadonlySet<string> | undefined;
  /** The restored disks. */
  readonly disks: ReadonlySet<string>;
  /** The restored NVRAM, kernel and so on. */
  readonly files: ReadonlySet<string>;
  /** Whether its emulator and firmware may be any: QEMU runs them as it runs others. */
  readonly programs: boolean;
}

type Check<T> = (value: T, allowed: Allowed) => boolean;

export interface Rule {
  /** The attributes that may stay. */
  readonly attributes: ReadonlySet<string> | "any";
  /** Attributes whose value decides. */
  readonly values: Readonly<Record<string, Check<string>>>;
  /** The elements below it that may stay; more than one of a name only if the name is in `many`. */
  readonly children: Readonly<Record<string, Rule>>;
  readonly many: ReadonlySet<string>;
  /** The rule for all other elements below it; undefined: they are left out. */
  readonly others: Rule | undefined;
  /** Its text may be anything. Otherwise it must be no path. */
  readonly freeText: boolean;
  /** Whether it may stay as a whole. */
  readonly fits: Check<XmlElement> | undefined;
}

interface Parts {
  /** Elements below it of which there may be one. */
  readonly one?: Readonly<Record<string, Rule>>;
  /** Elements below it of which there may be several. */
  readonly many?: Readonly<Record<string, Rule>>;
  readonly others?: Rule;
  readonly values?: Readonly<Record<string, Check<string>>>;
  readonly freeText?: boolean;
  readonly fits?: Check<XmlElement>;
}

/** @param attributes their names, or `any` */
function rule(attributes: string, parts: Parts = {}): Rule {
  const { one, many, others, values = {}, freeText = false, fits } = parts;
  return {
    attributes: attributes === "any" ? "any" : new Set([...attributes.split(" "), ...Object.keys(values)]),
    values,
    children: { ...one, ...many },
    many: new Set(Object.keys(many ?? {})),
    others,
    freeText,
    fits,
  };
}

/** Settings of the guest's machine: any elements and attributes whose values are no paths. */
const PLAIN: Rule = {
  ...rule("any"),
  get others() {
    return PLAIN;
  },
};
const TEXT = rule("", { freeText: true });

function plain(names: string): Record<string, Rule> {
  return Object.fromEntries(names.split(" ").map((name) => [name, PLAIN]));
}

function oneOf(...values: readonly string[]): Check<string> {
  return (value) => values.includes(value);
}

/** The element's type; `usual` if it says none. */
function hasType(types: string, usual = ""): Check<XmlElement> {
  return (element) => types.split(" ").includes(element.attributeText("type") ?? usual);
}

/** Where packages of distributions install firmware; only root can change these folders. */
const FIRMWARE =
  /^\/usr\/(share|lib)\/(OVMF|ovmf|AAVMF|edk2|edk2-[\w.-]+|qemu|qemu-efi|qemu-efi-[\w.-]+|qemu-kvm|seabios|u-boot)\//;
/** Emulators, where libvirt was not asked for those that it has. */
const USUAL_EMULATOR = /^\/usr\/(bin|libexec)\/(qemu-system-\w+|qemu-kvm|kvm)$/;

function isFirmware(path: string, { programs }: Allowed): boolean {
  if (programs) return true;
  return FIRMWARE.test(path) && !path.split("/").includes("..");
}

const isEmulator: Check<XmlElement> = ({ text }, { emulators, programs }) =>
  programs || (emulators === undefined ? USUAL_EMULATOR.test(text) : emulators.has(text));

const isRestoredFile: Check<XmlElement> = ({ text }, { files }) => files.has(text);

const isRestoredPath: Check<string> = (path, { disks }) => disks.has(path);

const isRestoredDisk: Check<XmlElement> = (source, { disks }) => {
  const paths = ["file", "dev"].flatMap((name) => source.attributeText(name) ?? []);
  return paths.length === 1 && paths.every((path) => disks.has(path));
};

/** A hard disk needs its file; a drive can be empty. */
const isUsableDisk: Check<XmlElement> = (disk, allowed) => {
  const [source] = disk.all("source");
  const isDrive = ["cdrom", "floppy"].includes(disk.attributeText("device") ?? "disk");
  if (!hasType("file block", "file")(disk, allowed)) return false;
  return isDrive || (source !== undefined && isRestoredDisk(source, allowed));
};

const isLoader: Check<XmlElement> = (loader, allowed) => {
  const isReadOnly = loader.attributeText("readonly") !== "no";
  const isRestored = loader.text === "" || allowed.files.has(loader.text);
  return isRestored || (isReadOnly && isFirmware(loader.text, allowed));
};

const isOwnNvram: Check<XmlElement> = (nvram, { files }) => nvram.text === "" || files.has(nvram.text);

const isRandomSource: Check<XmlElement> = (rng) =>
  rng.all("backend").every((backend) => {
    const isKernels = ["/dev/urandom", "/dev/random"].includes(backend.text);
    const model = backend.attributeText("model");
    return model === "builtin" ? backend.text === "" : model === "random" && isKernels;
  });

const isPlainMemory: Check<XmlElement> = (memory) =>
  ["dimm", "virtio-mem", "sgx-epc"].includes(memory.attributeText("model") ?? "");

const isOsinfo: Check<XmlElement> = (element) => {
  const [prefix = ""] = element.name.split(":");
  return element.attributeText(`xmlns:${prefix}`) === "http://libosinfo.org/xmlns/libvirt/domain/1.0";
};

const isLoopback = oneOf("127.0.0.1", "::1", "localhost");

const VIRTIO = "iommu ats packed page_per_vq";
/** What every device may have. */
const DEVICE = { ...plain("alias acpi address boot"), rom: rule("enabled bar") };

const DISK = rule("device type model snapshot", {
  one: {
    ...DEVICE,
    ...plain(
      "iotune serial wwn vendor product blockio geometry shareable readonly transient throttlefilters",
    ),
    driver: rule(
      `name type cache error_policy rerror_policy io ioeventfd event_idx copy_on_read discard detect_zeroes discard_no_unref iothread queues queue_size ${VIRTIO}`,
      { one: plain("metadata_cache iothreads statistics"), values: { name: oneOf("qemu") } },
    ),
    source: rule("", { fits: isRestoredDisk, values: { file: isRestoredPath, dev: isRestoredPath } }),
    target: rule("dev bus tray removable rotation_rate dpofua"),
  },
  fits: isUsableDisk,
});

const INTERFACE = rule("type trustGuestRxFilters", {
  one: {
    ...DEVICE,
    ...plain("mac model link mtu coalesce guest filterref bandwidth vlan port teaming tune virtualport"),
    source: rule("network portgroup bridge macTableManager"),
    backend: rule("type", { values: { type: oneOf("default", "passt") } }),
    driver: rule(
      `name queues rx_queue_size tx_queue_size txmode ioeventfd event_idx rss rss_hash_report ${VIRTIO}`,
      { one: plain("host guest"), values: { name: oneOf("vhost", "qemu") } },
    ),
  },
  many: plain("ip route"),
  fits: hasType("network bridge user"),
});

const GRAPHICS = rule(
  "type port tlsPort autoport listen passwd passwdValidTo connected keymap sharePolicy powerControl defaultMode",
  {
    one: {
      ...plain("image jpeg zlib playback streaming clipboard mouse filetransfer audio"),
      gl: rule("enable", { values: { enable: oneOf("no") } }),
    },
    many: {
      channel: PLAIN,
      listen: rule("type address", { values: { address: isLoopback }, fits: hasType("address none") }),
    },
    values: { listen: isLoopback },
    fits: hasType("vnc spice"),
  },
);

const VIDEO = rule("", {
  one: {
    ...DEVICE,
    driver: rule(`name vgaconf ${VIRTIO}`, { values: { name: oneOf("qemu") } }),
    model: rule("type ram vram vram64 vgamem heads primary blob edid", {
      one: { acceleration: rule("accel2d"), resolution: PLAIN },
    }),
  },
});

/** Without a source: libvirt makes what it needs, in a place of its own. */
function characterDevice(types: string): Rule {
  return rule("type", {
    one: { ...DEVICE, target: PLAIN, source: SPICE_SOURCE },
    fits: (device, allowed) => hasType(types, "pty")(device, allowed) && needsNoSource(device),
  });
}
/** A socket that no virtio channel leads to (`guestfwd`) has to have a path, which libvirt doesn't make. */
function needsNoSource(device: XmlElement): boolean {
  const isVirtio = device.first("target")?.attributeText("type") === "virtio";
  return device.attributeText("type") !== "unix" || isVirtio;
}
/** Only names a channel, or what a channel does. */
const SPICE_SOURCE = rule("channel", { one: plain("clipboard mouse") });
/** Types of terminals that name nothing of the host. */
export const OWN_TERMINALS = "pty null vc stdio";

const TPM = rule("model", {
  one: {
    ...DEVICE,
    backend: rule("type version persistent_state", {
      one: { active_pcr_banks: PLAIN, profile: rule("name removeDisabled") },
    }),
  },
  fits: (tpm, allowed) => tpm.all("backend").every((backend) => hasType("emulator")(backend, allowed)),
});

const DEVICES = rule("", {
  one: {
    ...plain("redirfilter"),
    emulator: rule("", { freeText: true, fits: isEmulator }),
    tpm: TPM,
  },
  many: {
    ...plain("controller hub sound watchdog memballoon nvram panic iommu vsock"),
    disk: DISK,
    interface: INTERFACE,
    graphics: GRAPHICS,
    video: VIDEO,
    audio: rule("id type timerPeriod", { one: plain("input output"), fits: hasType("none spice") }),
    input: rule("type bus model", {
      one: { ...DEVICE, driver: PLAIN },
      fits: hasType("tablet mouse keyboard"),
    }),
    serial: characterDevice(OWN_TERMINALS),
    console: characterDevice(OWN_TERMINALS),
    parallel: characterDevice(OWN_TERMINALS),
    channel: characterDevice(`${OWN_TERMINALS} unix spicevmc spiceport qemu-vdagent`),
    redirdev: rule("bus type", { one: DEVICE, fits: hasType("spicevmc") }),
    smartcard: rule("mode type", { one: DEVICE, fits: hasType("spicevmc") }),
    rng: rule("model", {
      one: { ...DEVICE, ...plain("driver rate"), backend: rule("model", { freeText: true }) },
      fits: isRandomSource,
    }),
    memory: rule("model access discard", {
      one: {
        ...DEVICE,
        ...plain("uuid target"),
        source: rule("", { one: plain("pagesize nodemask") }),
      },
      fits: isPlainMemory,
    }),
    crypto: rule("model type", {
      one: {
        ...DEVICE,
        driver: PLAIN,
        backend: rule("model queues", { values: { model: oneOf("builtin") } }),
      },
    }),
  },
});

const BOOT_FILE = rule("", { freeText: true, fits: isRestoredFile });
const OS = rule("firmware", {
  one: {
    ...plain("type bootmenu smbios bios firmware"),
    kernel: BOOT_FILE,
    initrd: BOOT_FILE,
    dtb: BOOT_FILE,
    shim: BOOT_FILE,
    cmdline: TEXT,
    loader: rule("readonly secure type stateless format", { freeText: true, fits: isLoader }),
    nvram: rule("template templateFormat format", {
      freeText: true,
      values: { template: isFirmware },
      fits: isOwnNvram,
    }),
    acpi: rule("", { many: { table: rule("type", { freeText: true, fits: isRestoredFile }) } }),
  },
  many: plain("boot"),
});

const ENTRY = rule("name", { freeText: true, fits: (entry) => entry.attribute("file") === undefined });
const ENTRIES = rule("", { many: { entry: ENTRY } });

export const DOMAIN = rule("type", {
  one: {
    ...plain(
      "name uuid genid memory maxMemory currentMemory vcpu vcpus iothreads iothreadids defaultiothread",
    ),
    ...plain("cpu clock features pm perf cputune numatune memtune keywrap throttlegroups"),
    ...plain("on_poweroff on_reboot on_crash on_lockfailure"),
    title: TEXT,
    description: TEXT,
    // Programs and hooks of the host read the rest.
    metadata: rule("", { others: { ...PLAIN, fits: isOsinfo } }),
    memoryBacking: rule("", {
      one: plain("hugepages nosharepages locked source access allocation discard"),
    }),
    blkiotune: rule("", { one: plain("weight") }),
    resource: rule("", {
      one: { partition: rule("", { freeText: true, fits: ({ text }) => text === "/machine" }) },
    }),
    launchSecurity: rule("type kernelHashes", {
      one: { ...plain("cbitpos reducedPhysBits policy handle"), dhCert: TEXT, session: TEXT },
    }),
    os: OS,
    devices: DEVICES,
  },
  many: {
    sysinfo: rule("type", {
      one: { bios: ENTRIES, system: ENTRIES, chassis: ENTRIES, oemStrings: ENTRIES },
      many: { baseBoard: ENTRIES, entry: ENTRY },
    }),
    seclabel: rule("type model relabel", {
      values: { relabel: oneOf("yes") },
      fits: hasType("dynamic", "dynamic"),
    }),
  },
});
