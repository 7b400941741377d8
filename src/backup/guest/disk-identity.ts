import { stat } from "node:fs/promises";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import { type DiskIdentity, isSame } from "../repository/manifest.js";
import type { Definition } from "./keep-files.js";

/** Longer values are left out: whoever defines a domain can write anything there. */
const LONGEST = { source: 4096, format: 64, serial: 256 } as const;

/**
 * What tells each disk of a domain from others, by the disk's target. Files of another host are not looked
 * at, and what can't be found out is null.
 */
export async function diskIdentities({
  xml,
  host,
}: Pick<Definition, "xml" | "host">): Promise<ReadonlyMap<string, DiskIdentity>> {
  const identities = new Map<string, DiskIdentity>();
  for (const { target, source, format, serial } of parseDomain(xml).disks) {
    const place = host === undefined && source !== undefined ? await placeOf(source) : NOWHERE;
    identities.set(target, {
      source: bounded("source", source),
      format: bounded("format", format),
      serial: bounded("serial", serial),
      ...place,
    });
  }
  return identities;
}

/** What of a disk's identity has changed; undefined if nothing has, as far as both are known. */
export function changedIdentity(
  before: DiskIdentity | undefined,
  now: DiskIdentity | undefined,
): string | undefined {
  const changed = (["source", "format", "device", "inode", "serial"] as const).filter(
    (field) => !isSame(before?.[field], now?.[field]),
  );
  return changed.length === 0 ? undefined : changed.join(", ");
}

const NOWHERE = { device: null, inode: null } as const;

/** A file is known by its file system's device and its inode, a block device by its own number. */
async function placeOf(path: string): Promise<Pick<DiskIdentity, "device" | "inode">> {
  const found = await stat(path, { bigint: true }).catch(() => undefined);
  if (found === undefined) return NOWHERE;
  if (found.isBlockDevice()) return { device: numberOf(found.rdev), inode: null };
  return { device: numberOf(found.dev), inode: String(found.ino) };
}

/** A device's number as `MAJOR:MINOR`, in the encoding of Linux. */
function numberOf(device: bigint): string {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xffff_f000n);
  const minor = (device & 0xffn) | ((device >> 12n) & 0xffff_ff00n);
  return `${major}:${minor}`;
}

function bounded(field: keyof typeof LONGEST, value: string | undefined): string | null {
  return value === undefined || value === "" || value.length > LONGEST[field] ? null : value;
}
