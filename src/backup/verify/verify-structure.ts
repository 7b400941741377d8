import type { Damage, OnDamage } from "../base/damage.js";
import { clustersIn, type ImageFormat } from "../image/image.js";
import type { FilePlace } from "../image/readable-file.js";
import { checkQcow2 } from "../qcow2/check.js";
import { l2Entries } from "../qcow2/format.js";
import { encodeHeader, INCOMPATIBLE } from "../qcow2/header.js";
import { Qcow2Reader } from "../qcow2/reader.js";

/** The backing file that a point's image has to name. */
export interface ExpectedBacking {
  readonly name: string;
  readonly format: ImageFormat;
}

/**
 * Checks the structure of a qcow2 image, and its header byte for byte. QEMU relies on the header and not on
 * our manifest, and refuses an image for bits that our reader ignores.
 *
 * @param onLeak called for clusters that waste space but do no harm
 * @throws the file system's error
 */
export async function verifyStructure(
  place: FilePlace,
  backing: ExpectedBacking | undefined,
  { onDamage, onLeak }: { readonly onDamage: OnDamage; readonly onLeak: OnDamage },
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const { severity, ...damage } of await checkQcow2(place, signal ? { signal } : {})) {
    if (severity === "damage") onDamage(damage);
    else onLeak(damage);
  }
  await using image = await Qcow2Reader.open(place);
  for (const message of [wrongBacking(image, backing), await wrongHeader(image)]) {
    if (message !== undefined) onDamage({ message });
  }
}

function wrongBacking(
  { header }: Qcow2Reader,
  backing: ExpectedBacking | undefined,
): Damage["message"] | undefined {
  // Compared literally: an absolute path to the same file would break when the repository is moved.
  if (header.backingFile === backing?.name && header.backingFormat === backing?.format) return undefined;
  const found = header.backingFile === undefined ? "none" : `${header.backingFile} (${header.backingFormat})`;
  const wanted = backing === undefined ? "none" : `${backing.name} (${backing.format})`;
  return `its header names the backing file ${found}, the point's parent is ${wanted}`;
}

async function wrongHeader(image: Qcow2Reader): Promise<Damage["message"] | undefined> {
  const { header } = image;
  const extended = (header.incompatible & INCOMPATIBLE.EXTENDED_L2) !== 0;
  const expected = Buffer.alloc(header.clusterSize);
  const l1Entries = Math.ceil(clustersIn(image.geometry) / l2Entries(header.clusterSize, extended));
  encodeHeader({ ...header, extended, l1Entries }).copy(expected);
  const present = Buffer.alloc(header.clusterSize);
  await image.readHost(0, present);
  return present.equals(expected) ? undefined : "its header has bytes that no backup writes";
}
