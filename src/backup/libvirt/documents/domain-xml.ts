import { z } from "zod";
import { type DocumentKind, element, oneOf, parseDocument, text, wholeNumber } from "./xml.js";

/** A volume of one of libvirt's storage pools. */
interface Volume {
  readonly pool: string;
  readonly name: string;
}

/** The parts of a domain's definition that a backup needs. */
export interface DomainDefinition {
  readonly name: string;
  readonly uuid: string;
  /** The number of this run of the domain; absent while it is off. Another run has another number. */
  readonly id?: number | undefined;
  readonly disks: readonly DomainDisk[];
  /**
   * The user that its QEMU runs as; absent while the domain is off, or if libvirt doesn't change users
   * (session mode).
   */
  readonly qemuUser?: QemuUser | undefined;
  /** What it runs on; absent if the definition leaves part of this to libvirt. */
  readonly platform?: Platform | undefined;
  /** Other security models that restrict its QEMU to its own files while it runs (`apparmor`, `selinux`). */
  readonly confinedBy: readonly string[];
}

/** The parameters on which libvirt's domain capabilities depend. */
export interface Platform {
  /** `kvm`, `qemu`, … */
  readonly type: string;
  readonly emulator: string;
  readonly arch: string;
  readonly machine: string;
}

export interface QemuUser {
  readonly uid: number;
  readonly gid: number;
}

export interface DomainDisk {
  /** Its name in the domain: `vda`. */
  readonly target: string;
  readonly device: "disk" | "cdrom" | "floppy" | "lun";
  /** The type of its storage: `file`, `block`, `network`, … */
  readonly type: string;
  /** The path of a file or block device; absent for other types, and for an empty drive. */
  readonly source?: string | undefined;
  /** The image's format (`qcow2`, `raw`). */
  readonly format?: string | undefined;
  readonly readOnly: boolean;
  /** Whether QEMU works on it in a thread of its own, by the disk's definition or by its controller's. */
  readonly hasIothread: boolean;
  /**
   * The domain runs, and what it writes to the disk is dropped when it ends: libvirt backs up no such disk.
   */
  readonly transient?: true | undefined;
  /** The volume that a disk of type `volume` is. */
  readonly volume?: Volume | undefined;
  /** The serial number that the guest sees, if the definition gives one. */
  readonly serial?: string | undefined;
  /** A layer between the image and what the guest sees, if there is one. */
  readonly between?: "encryption" | "slices" | undefined;
  /** QEMU decrypts its image or one below it, so what a backup reads is plain text. */
  readonly isEncrypted?: true | undefined;
}

const DOMAIN: DocumentKind = { code: "E_DOMAIN_XML", root: "domain", source: "virsh dumpxml DOMAIN" };

const diskSchema = element(
  { type: text.default("file"), device: oneOf("disk", "cdrom", "floppy", "lun").default("disk") },
  {
    target: element({ dev: text, bus: text.optional() }, {}),
    source: element(
      { file: text.optional(), dev: text.optional(), pool: text.optional(), volume: text.optional() },
      // Only their presence counts.
      { slices: z.unknown().optional(), encryption: z.unknown().optional() },
    ).optional(),
    encryption: z.unknown().optional(),
    // How many there are, and of what, is of no interest here.
    backingStore: z.unknown().optional(),
    driver: element(
      { type: text.optional(), iothread: text.optional() },
      { iothreads: z.unknown().optional() },
    ).optional(),
    address: element({ controller: text.optional() }, {}).optional(),
    readonly: z.unknown().optional(),
    transient: z.unknown().optional(),
    serial: text.optional(),
  },
);

const controllerSchema = element(
  { type: text.optional(), index: text.optional() },
  {
    driver: element({ iothread: text.optional() }, { iothreads: z.unknown().optional() }).optional(),
  },
);

/** The parser returns a plain string if the element has no attributes. */
const osType = element({ arch: text.optional(), machine: text.optional() }, {}).or(text);

const domainSchema = element(
  { id: wholeNumber.optional(), type: text.optional() },
  {
    name: text,
    // Any 128 bits: libvirt accepts UUIDs that conform to no version of the standard.
    uuid: z.guid("must be a UUID"),
    os: element({}, { type: osType.optional() }).optional(),
    devices: element(
      {},
      {
        disk: z.array(diskSchema).default([]),
        controller: z.array(controllerSchema).default([]),
        emulator: text.optional(),
      },
    ).optional(),
    seclabel: z.array(element({ model: text.optional() }, { label: text.optional() })).default([]),
  },
);

/**
 * Reads the XML of a domain, running or not.
 * @throws {BackupError} `E_DOMAIN_XML`, or that followed by an element's name
 */
export function parseDomain(xml: string): DomainDefinition {
  const domain = parseDocument(DOMAIN, xml, domainSchema);
  return {
    name: domain.name,
    uuid: domain.uuid,
    id: domain.$.id,
    disks: (domain.devices?.disk ?? []).map((disk) =>
      readDisk(disk, domain.devices?.controller ?? [], domain.$.id !== undefined),
    ),
    qemuUser: readQemuUser(domain.seclabel),
    platform: readPlatform(domain),
    confinedBy: domain.seclabel.flatMap(({ $, label }) =>
      label !== undefined && $.model !== undefined && $.model !== "dac" ? [$.model] : [],
    ),
  };
}

function readPlatform({ $, os, devices }: z.infer<typeof domainSchema>): Platform | undefined {
  const { arch, machine } = (typeof os?.type === "object" && os.type.$) || {};
  const emulator = devices?.emulator;
  if ($.type === undefined || emulator === undefined || arch === undefined || machine === undefined) {
    return undefined;
  }
  return { type: $.type, emulator, arch, machine };
}

/** The user of a running domain, which libvirt shows among the security labels. */
function readQemuUser(labels: z.infer<typeof domainSchema>["seclabel"]): QemuUser | undefined {
  return readDacLabel(labels.find(({ $ }) => $.model === "dac")?.label);
}

/** `+64055:+994`; undefined for anything else. */
export function readDacLabel(label: string | undefined): QemuUser | undefined {
  const [, uid, gid] = /^\+(\d+):\+(\d+)$/.exec(label ?? "") ?? [];
  return uid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) };
}

function readBetween({ source, encryption }: z.infer<typeof diskSchema>): DomainDisk["between"] {
  if (encryption !== undefined || source?.encryption !== undefined) return "encryption";
  return source?.slices === undefined ? undefined : "slices";
}

function readVolume({ $, source }: z.infer<typeof diskSchema>): Volume | undefined {
  const { pool, volume: name } = source?.$ ?? {};
  return $.type === "volume" && pool !== undefined && name !== undefined ? { pool, name } : undefined;
}

/** Whether an image below is encrypted: libvirt says so in its format or its source. */
function hasEncryption(backingStore: unknown): boolean {
  if (typeof backingStore !== "object" || backingStore === null) return false;
  return Object.entries(backingStore).some(([name, part]) => name === "encryption" || hasEncryption(part));
}

function readDisk(
  disk: z.infer<typeof diskSchema>,
  controllers: readonly z.infer<typeof controllerSchema>[],
  isRunning: boolean,
): DomainDisk {
  const controller = controllers.find(
    ({ $ }) =>
      $.type === disk.target.$.bus && $.index !== undefined && $.index === disk.address?.$.controller,
  );
  const between = readBetween(disk);
  const isEncrypted = between === "encryption" || hasEncryption(disk.backingStore);
  return {
    target: disk.target.$.dev,
    device: disk.$.device,
    type: disk.$.type,
    source: disk.source?.$.file ?? disk.source?.$.dev,
    format: disk.driver?.$.type,
    readOnly: disk.readonly !== undefined,
    transient: isRunning && disk.transient !== undefined ? true : undefined,
    volume: readVolume(disk),
    serial: disk.serial,
    hasIothread: [disk, controller].some((device) => usesIothread(device?.driver)),
    between,
    ...(isEncrypted ? { isEncrypted } : {}),
  };
}

/** Newer versions of libvirt spread a device over several iothreads, which are children of its driver. */
function usesIothread(driver: z.infer<typeof controllerSchema>["driver"]): boolean {
  return driver?.$.iothread !== undefined || driver?.iothreads !== undefined;
}
