/** The documents that a lab gives to libvirt: domain, backup and checkpoint. */
import { join } from "node:path";

export const LAB_DISKS = ["vda", "vdb"] as const;
export type LabDisk = (typeof LAB_DISKS)[number];
export type PerDisk<T> = Readonly<Record<LabDisk, T>>;
export type LabFormat = "qcow2" | "raw";

/** What the documents need to know about a lab. */
export interface LabFacts {
  readonly domain: string;
  readonly uuid: string;
  readonly folder: string;
  readonly formats: PerDisk<LabFormat>;
  readonly unprivileged: boolean;
}

export type LabServer =
  | { readonly transport: "unix"; readonly socket: string }
  | { readonly transport: "tcp"; readonly host: string; readonly port: number; readonly tls: boolean };

export interface BeginOptions {
  /** A checkpoint to create in the same transaction, on the same disks (except raw ones). */
  readonly checkpoint?: string;
  /** The job's base; without one, disks are full. */
  readonly incremental?: string;
  /** Disks to back up; both by default. */
  readonly disks?: readonly LabDisk[];
  readonly perDisk?: Partial<PerDisk<LabDiskOptions>>;
  /** Defaults to unix. */
  readonly transport?: "unix" | "tcp";
  /** With `tcp`: serve over TLS, as `localhost`. The lab's own copies of the exports don't support TLS. */
  readonly tls?: boolean;
  /** Where the scratch files are; by default the lab's folder. */
  readonly scratchFolder?: string;
}

/** How one disk differs from its job. */
export interface LabDiskOptions {
  readonly mode?: "full" | "incremental";
  readonly incremental?: string;
  readonly exportName?: string;
  readonly exportBitmap?: string;
  /** A block device for its scratch image; by default that is a file. */
  readonly scratchDevice?: string;
}

export function imagePath(lab: LabFacts, disk: LabDisk): string {
  return join(lab.folder, `${disk}.${lab.formats[disk]}`);
}

/**
 * A domain that never writes by itself: it boots only from a network, which it doesn't have. QEMU emulates
 * the processor: inside of a virtual machine the firmware costs two seconds of processor time with KVM, and a
 * tenth of that without. Unless `unprivileged`, QEMU runs as root, so that it can access the lab's folder
 * whoever owns it.
 */
export function domainXml(lab: LabFacts): string {
  const disks = LAB_DISKS.map(
    (disk) =>
      `<disk type='file' device='disk'><driver name='qemu' type='${lab.formats[disk]}' discard='unmap'/>` +
      `<source${attributes({ file: imagePath(lab, disk) })}/><target dev='${disk}' bus='virtio'/></disk>`,
  );
  const root = "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>";
  return `<domain type='qemu'>
  <name>${lab.domain}</name>
  <uuid>${lab.uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='network'/></os>
  <devices>${disks.join("")}<controller type='usb' model='none'/><memballoon model='none'/></devices>
  ${lab.unprivileged ? "" : root}
</domain>`;
}

/** `job` distinguishes the names of the scratch files, which must not exist yet. */
export function backupXml(lab: LabFacts, job: number, server: LabServer, options: BeginOptions): string {
  const chosen = options.disks ?? LAB_DISKS;
  const disks = LAB_DISKS.map((name) => {
    if (!chosen.includes(name)) return `<disk name='${name}' backup='no'/>`;
    const own = options.perDisk?.[name] ?? {};
    const settings = attributes({
      name,
      backup: "yes",
      type: own.scratchDevice === undefined ? "file" : "block",
      backupmode: own.mode,
      incremental: own.incremental,
      exportname: own.exportName,
      exportbitmap: own.exportBitmap,
    });
    const file = join(options.scratchFolder ?? lab.folder, `scratch-${name}-${job}.qcow2`);
    const { scratchDevice: dev } = own;
    const scratch = attributes(dev === undefined ? { file } : { dev });
    return `<disk${settings}><driver type='qcow2'/><scratch${scratch}/></disk>`;
  });
  const address =
    server.transport === "unix"
      ? attributes({ transport: "unix", socket: server.socket })
      : attributes({
          transport: "tcp",
          name: server.host,
          port: String(server.port),
          tls: server.tls ? "yes" : undefined,
        });
  const base =
    options.incremental === undefined ? "" : `<incremental>${escapeXml(options.incremental)}</incremental>`;
  return `<domainbackup mode='pull'>${base}<server${address}/><disks>${disks.join("")}</disks></domainbackup>`;
}

/** A checkpoint of the chosen disks. The others must be listed too: by default libvirt includes them. */
export function checkpointXml(lab: LabFacts, name: string, chosen: readonly LabDisk[]): string {
  const disks = LAB_DISKS.map((disk) => {
    const bitmap = chosen.includes(disk) && lab.formats[disk] === "qcow2";
    return `<disk name='${disk}' checkpoint='${bitmap ? "bitmap" : "no"}'/>`;
  });
  return `<domaincheckpoint><name>${escapeXml(name)}</name><disks>${disks.join("")}</disks></domaincheckpoint>`;
}

/** Formats the attributes that have a value, each with a leading space. */
function attributes(values: Readonly<Record<string, string | undefined>>): string {
  const entries = Object.entries(values).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return entries.map(([name, value]) => ` ${name}='${escapeXml(value)}'`).join("");
}

function escapeXml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("'", "&apos;");
}
