import { z } from "zod";
import { PreconditionError } from "../../base/errors.js";
import {
  type DocumentKind,
  element,
  malformed,
  oneOf,
  parseDocument,
  text,
  wholeNumber,
  yesNo,
} from "./xml.js";

/** A running pull-mode job, as `virsh backup-dumpxml` describes it, with every default filled in. */
export interface BackupJob {
  readonly mode: "pull";
  /** The base checkpoint of the disks that don't name one of their own. */
  readonly incremental?: string | undefined;
  readonly server: BackupServer;
  /** All disks that the document names, including those that take no part. */
  readonly disks: readonly BackupJobDisk[];
}

/** Where QEMU serves the exports, as seen from the hypervisor. */
export type BackupServer =
  | { readonly transport: "unix"; readonly socket: string; readonly tls: boolean }
  | {
      readonly transport: "tcp";
      /**
       * The address that the hypervisor bound. It may be `localhost` or `0.0.0.0`, which other hosts can't
       * use.
       */
      readonly host: string;
      readonly port: number;
      readonly tls: boolean;
    };

type BackupJobDisk = SkippedDisk | FullDisk | IncrementalDisk;

/** A disk that the job can pull. */
export type ExportedDisk = FullDisk | IncrementalDisk;

/** `backup='no'`. */
interface SkippedDisk {
  /** The disk's target in the domain: `vda`. */
  readonly name: string;
  readonly backup: false;
}

interface ExportedDiskFields {
  readonly name: string;
  readonly backup: true;
  readonly exportName: string;
  /**
   * libvirt's number for the scratch node, in `virsh domblkthreshold DOMAIN 'vda[5]' …`; new for every job.
   */
  readonly index?: number | undefined;
  readonly scratch?: Scratch | undefined;
}

/** The qcow2 image or device that keeps the data that the guest overwrites while the job runs. */
interface Scratch {
  readonly type: "file" | "block";
  readonly path: string;
}

interface FullDisk extends ExportedDiskFields {
  readonly mode: "full";
}

export interface IncrementalDisk extends ExportedDiskFields {
  readonly mode: "incremental";
  /** The checkpoint from which this disk's changes are counted. */
  readonly incremental: string;
  /** The bitmap's name without the `qemu:dirty-bitmap:` of its meta context. */
  readonly bitmap: string;
}

const BACKUP: DocumentKind = {
  code: "E_BACKUP_XML",
  root: "domainbackup",
  source: "virsh backup-dumpxml DOMAIN",
};

const NO_PORT = "must be from 1 to 65535";

const serverSchema = element(
  {
    transport: oneOf("unix", "tcp").default("tcp"),
    socket: text.optional(),
    name: text.optional(),
    port: wholeNumber.pipe(z.number().min(1, NO_PORT).max(65535, NO_PORT)).optional(),
    tls: yesNo.optional(),
  },
  {},
);

const diskSchema = element(
  {
    name: text,
    backup: yesNo.default(true),
    backupmode: oneOf("full", "incremental").optional(),
    incremental: text.optional(),
    exportname: text.optional(),
    exportbitmap: text.optional(),
    index: wholeNumber.optional(),
  },
  { scratch: element({ file: text.optional(), dev: text.optional() }, {}).optional() },
);

const backupSchema = element(
  { mode: oneOf("push", "pull").default("push") },
  {
    incremental: text.optional(),
    server: serverSchema.optional(),
    disks: element({}, { disk: z.array(diskSchema).default([]) }).optional(),
  },
);

/**
 * Reads the XML of a backup job.
 *
 * A disk is incremental if `backupmode` says so or, if that is absent, if the disk or its job names a base.
 * Missing names have libvirt's defaults: the export has the name of the disk, and the bitmap is called
 * `backup-` followed by it. An `exportbitmap` on a full disk (libvirt keeps one that was requested) means
 * nothing.
 *
 * @throws {PreconditionError} `E_PUSH_MODE`: QEMU writes the backup itself, so there is nothing to pull
 * @throws {BackupError} `E_BACKUP_XML`, or that followed by an element's name: `E_BACKUP_XML_SERVER`,
 * `E_BACKUP_XML_DISK`, …
 */
export function parseBackupJob(xml: string): BackupJob {
  const backup = parseDocument(BACKUP, xml, backupSchema);
  if (backup.$.mode === "push") {
    throw new PreconditionError(
      "E_PUSH_MODE",
      "the backup job is in push mode: QEMU itself writes the copy, and there is nothing to pull. " +
        "Wait for its end or cancel it (virsh domjobabort DOMAIN), then begin one with <domainbackup mode='pull'>",
    );
  }
  if (backup.server === undefined) throw malformed(BACKUP, ["server"], "is missing");
  const disks = (backup.disks?.disk ?? []).map((disk, index) => readDisk(disk, index, backup.incremental));
  assertDistinct(disks);
  return {
    mode: "pull",
    incremental: backup.incremental,
    server: readServer(backup.server),
    disks,
  };
}

/** The disks that take part in a job, in the document's order. */
export function exportedDisks(job: BackupJob): readonly ExportedDisk[] {
  return job.disks.filter((disk) => disk.backup);
}

function readServer({ $: server }: z.infer<typeof serverSchema>): BackupServer {
  if (server.transport === "unix") {
    if (server.socket === undefined) throw malformed(BACKUP, ["server", "$", "socket"], "is missing");
    return { transport: "unix", socket: server.socket, tls: server.tls ?? false };
  }
  if (server.port === undefined) throw malformed(BACKUP, ["server", "$", "port"], "is missing");
  return {
    transport: "tcp",
    host: server.name ?? "localhost",
    port: server.port,
    tls: server.tls ?? false,
  };
}

function readDisk(
  { $: disk, scratch }: z.infer<typeof diskSchema>,
  index: number,
  jobBase: string | undefined,
): BackupJobDisk {
  const { name } = disk;
  if (!disk.backup) return { name, backup: false };
  const common: ExportedDiskFields = {
    name,
    backup: true,
    exportName: disk.exportname ?? name,
    index: disk.index,
    scratch: readScratch(scratch),
  };
  const base = disk.incremental ?? jobBase;
  const mode = disk.backupmode ?? (base === undefined ? "full" : "incremental");
  if (mode === "full") return { ...common, mode };
  if (base === undefined) {
    throw malformed(
      BACKUP,
      ["disks", "disk", index, "$", "incremental"],
      "is missing, and the job has no base",
    );
  }
  return { ...common, mode, incremental: base, bitmap: disk.exportbitmap ?? `backup-${name}` };
}

function readScratch(scratch: z.infer<typeof diskSchema>["scratch"]): Scratch | undefined {
  if (scratch?.$.file !== undefined) return { type: "file", path: scratch.$.file };
  if (scratch?.$.dev !== undefined) return { type: "block", path: scratch.$.dev };
  return undefined;
}

function assertDistinct(disks: readonly BackupJobDisk[]): void {
  const names = new Set<string>();
  const exportNames = new Set<string>();
  for (const [index, disk] of disks.entries()) {
    if (names.has(disk.name)) {
      throw malformed(BACKUP, ["disks", "disk", index, "$", "name"], `names ${disk.name} a second time`);
    }
    names.add(disk.name);
    if (!disk.backup) continue;
    if (exportNames.has(disk.exportName)) {
      throw malformed(
        BACKUP,
        ["disks", "disk", index, "$", "exportname"],
        `is ${disk.exportName}, as of another disk`,
      );
    }
    exportNames.add(disk.exportName);
  }
  if (exportNames.size === 0) throw malformed(BACKUP, ["disks"], "lists no disk that takes part");
}
