import { z } from "zod";
import { DamageError, messageOf } from "../base/errors.js";
import { faultsOf } from "../base/json.js";
import { plainName } from "../storage/aside-name.js";

/** The version of the manifest's format; readers refuse any other. */
export const MANIFEST_VERSION = 1;

/**
 * Ids sort as the points were made: `20261120T113205.123Z`. They look like times, and mostly are the time of
 * the point; `createdAt` is it always.
 */
const POINT_ID = /^\d{8}T\d{6}\.\d{3}Z$/;
/** libvirt's targets (`vda`, `sdb`); excludes paths, and dots, which could imitate our suffixes. */
const DISK_NAME = /^[A-Za-z0-9_-]{1,64}$/;
/** A file's name in the point's folder, never a path. */
const FILE_NAME = /^[^/\\\0.][^/\\\0]*$/;

/** Suffixes of a disk's files, in a point and after a restore. */
const OF_A_DISK = /\.(qcow2|raw|map|digests)$/;

/** The `reason` of a disk that was an increment until a prune gave it the content of what it was based on. */
export const PRUNED_BELOW = "the points below it were pruned";

const bytes = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const clusterSize = bytes.refine((size) => size >= 16_384 && size <= 2_097_152 && (size & (size - 1)) === 0, {
  error: "is not a power of two from 16 KiB to 2 MiB",
});
const pointId = z.string().regex(POINT_ID, "is not the id of a point");
const fileName = z.string().max(255).regex(FILE_NAME, "is not a plain file name");
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);

/** What tells a disk from others; null where it was not found out. */
const identity = z.object({
  /** The path of its file or block device. */
  source: z.string().min(1).max(4096).nullable(),
  format: z.string().max(64).nullable(),
  /** `MAJOR:MINOR` of the block device, or of the file system that the file lies on. */
  device: z
    .string()
    .regex(/^\d{1,10}:\d{1,10}$/)
    .nullable(),
  /** Of a file. */
  inode: z
    .string()
    .regex(/^\d{1,20}$/)
    .nullable(),
  /** The serial number that the guest sees. */
  serial: z.string().max(256).nullable(),
});

const disk = z
  .object({
    /** The disk's target in the domain, for example `vda`. */
    name: z.string().regex(DISK_NAME, "is not the name of a disk"),
    file: fileName,
    format: z.enum(["qcow2", "raw"]),
    mode: z.enum(["full", "incremental"]),
    /** Why the disk is full although an increment might have been expected. */
    reason: z.string().optional(),
    /** The point that has this disk's clean clusters. */
    parent: pointId.nullable(),
    /** Bytes that the guest sees; the image's own size is rounded up to 512. */
    virtualSize: bytes,
    clusterSize,
    dirtyBytes: bytes,
    dataBytes: bytes,
    zeroBytes: bytes,
    /**
     * Bytes of guest data in the file as stored; a compressed cluster counts with the length of its stream.
     */
    storedBytes: bytes,
    exportName: z.string(),
    bitmap: z.string().nullable(),
    /** Raw increments only: the file that lists the defined extents. */
    map: z.object({ file: fileName, sha256 }).nullable(),
    digests: z.object({ file: fileName, algorithm: z.enum(["xxh64", "sha256"]), sha256 }).nullable(),
    /** Where the disk was when the point was taken. Points of earlier versions lack this. */
    identity: identity.optional(),
    /** Connections that were lost while the disk was read, if any, and how long reads waited for one. */
    outages: z.object({ connectionsLost: bytes, secondsWaited: z.number().nonnegative() }).optional(),
  })
  .refine((d) => (d.mode === "incremental") === (d.parent !== null), {
    error: "an incremental disk has a parent, a full one has none",
  })
  .refine((d) => (d.format === "raw" && d.mode === "incremental") === (d.map !== null), {
    error: "a raw increment has a map, nothing else has one",
  });

/** A file that the domain starts with, or its definition. */
const keptFile = z.object({
  /** `definition`, or QEMU's use of the file: `nvram`, `kernel`, … */
  role: z.string().min(1),
  file: fileName,
  /** Its path on the host; null for the definition, which came from libvirt. */
  source: z.string().nullable(),
  length: bytes,
  sha256,
});

const manifest = z
  .object({
    format: z.literal("nbdpull-point"),
    version: z.literal(MANIFEST_VERSION),
    id: pointId,
    domain: z.object({ name: z.string().min(1), uuid: z.string().nullable() }),
    level: z.enum(["full", "incremental"]),
    /** libvirt's checkpoint of the same moment, which the next increment names as its base. */
    checkpoint: z
      .strictObject({ name: z.string().min(1), creationTime: z.number().int().nullable() })
      .nullable(),
    /** When it was made, by the clock of that moment; version 0.1 wrote the time of the id. */
    createdAt: z.iso.datetime(),
    tool: z.string(),
    disks: z.array(disk).min(1),
    /**
     * In an object store, while a prune replaces images: what those were called that `disks` names, by name.
     */
    aside: z.record(fileName, fileName).optional(),
    /** Of a point that a later run completed, because the one that began it was killed. Sizes in bytes. */
    resumed: z
      .object({
        /** How many runs went on with it. */
        times: z.number().int().positive(),
        /** The data that the last of them found stored. */
        keptBytes: bytes,
        /** What the last of them read. */
        readBytes: bytes,
      })
      .optional(),
    /** The definition and the files that the domain needs to start. Points of earlier versions lack this. */
    files: z.array(keptFile).optional(),
    /** Files and state of the domain that could not be kept. */
    notKept: z.array(z.object({ what: z.string().min(1), reason: z.string() })).optional(),
  })
  .refine(({ files = [] }) => new Set(files.map(({ file }) => file)).size === files.length, {
    error: "a file is named twice",
  })
  .refine(({ files = [] }) => !files.some(({ file }) => file === "point.json" || OF_A_DISK.test(file)), {
    error: "a file has the name of a disk's, or the manifest's",
  })
  .refine(
    // Whoever writes there next gives the files these names.
    ({ disks, aside = {} }) => {
      const images = new Set(disks.map(({ file }) => file));
      const isMoved = ([name, file]: [string, string]): boolean =>
        images.has(name) && !images.has(file) && plainName(name) === file && OF_A_DISK.test(file);
      return Object.entries(aside).every(isMoved);
    },
    { error: "a file lies aside that is no disk's image, or has the name of another one" },
  )
  .refine(({ disks }) => new Set(disks.map(({ name }) => name)).size === disks.length, {
    error: "a disk is named twice",
  })
  .refine(({ level, disks }) => (level === "full") === disks.every(({ mode }) => mode === "full"), {
    error: "its level does not fit its disks",
  })
  .refine(({ id, disks }) => disks.every(({ parent }) => parent === null || parent < id), {
    error: "a parent is older than what is based on it",
  });

/** Of any version. */
const versioned = z.looseObject({ version: z.number() });

/** One restore point, as `point.json` holds it. Sizes in bytes. */
export type Manifest = Readonly<z.infer<typeof manifest>>;
export type DiskManifest = Manifest["disks"][number];
export type DiskIdentity = NonNullable<DiskManifest["identity"]>;
export type KeptFile = NonNullable<Manifest["files"]>[number];

/**
 * Parses a manifest and checks it against the schema.
 * @param path for the message
 * @param facts the domain and point that it should belong to, for the error's details
 * @throws {DamageError} not JSON, an unknown version, or a field is missing or wrong
 */
export function parseManifest(
  text: string,
  path: string,
  facts: Readonly<Record<string, unknown>> = {},
): Manifest {
  const fail = (what: string): DamageError =>
    new DamageError("E_MANIFEST", `${path} is not a manifest that this program reads: ${what}`, {
      details: { path, ...facts },
    });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw fail(`it is not JSON (${messageOf(cause)})`);
  }
  const version = versioned.safeParse(value).data?.version;
  if (version !== undefined && version !== MANIFEST_VERSION) {
    throw fail(
      `its version is ${version}; this program knows version ${MANIFEST_VERSION}. Use a newer nbdpull`,
    );
  }
  const parsed = manifest.safeParse(value);
  if (!parsed.success) throw fail(faultsOf(parsed.error));
  return parsed.data;
}

export function formatManifest(point: Manifest): string {
  return `${JSON.stringify(manifest.parse(point), null, 2)}\n`;
}

/** The id of a point made at `time`. */
export function pointIdAt(time: Date): string {
  return time.toISOString().replaceAll(/[-:]/g, "");
}

/** The moment that an id names, in milliseconds since 1970. */
export function timeOfPointId(id: string): number {
  const [, y, mo, d, h, mi, s] = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)([\d.]+Z)$/.exec(id) ?? [];
  return Date.parse(`${y}-${mo}-${d}T${h}:${mi}:${s}`);
}

/** When a point was made, by the clock of that moment, in milliseconds since 1970. */
export function timeOf({ createdAt }: Pick<Manifest, "createdAt">): number {
  return Date.parse(createdAt);
}

export function isDiskName(text: string): boolean {
  return DISK_NAME.test(text);
}

/** Whether the text is an id whose date and time exist. */
export function isPointId(text: string): boolean {
  if (!POINT_ID.test(text)) return false;
  const time = new Date(timeOfPointId(text));
  // Date.parse takes the 31st of February for a day in March.
  return !Number.isNaN(time.getTime()) && pointIdAt(time) === text;
}

/** Whether two facts agree. A fact that is unknown agrees with any other. */
export function isSame<T>(one: T | null | undefined, other: T | null | undefined): boolean {
  return (one ?? undefined) === undefined || (other ?? undefined) === undefined || one === other;
}

/** The name of a disk's image, as the images name it that are based on it. */
export function imageName(
  { aside = {} }: Pick<Manifest, "aside">,
  { file }: Pick<DiskManifest, "file">,
): string {
  return aside[file] ?? file;
}

/** The disk of that name; undefined where the point has none. */
export function diskOf(point: Pick<Manifest, "disks">, name: string): DiskManifest | undefined {
  return point.disks.find((disk) => disk.name === name);
}
