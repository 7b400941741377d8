import { randomUUID } from "node:crypto";
import { plainName } from "../storage/aside-name.js";
import type { MergeState } from "../storage/stored-writing.js";
import { formatManifest, type Manifest, parseManifest } from "./manifest.js";
import { manifestTextOf } from "./manifest-text.js";
import { rewritten } from "./rewritten.js";

/**
 * What a manifest in an object store says of a merge that has moved files of its point.
 * @param bytes the manifest
 * @returns undefined if it can't be read
 */
export function mergeState(bytes: Buffer): MergeState | undefined {
  const text = bytes.toString("utf8");
  let point: Manifest;
  try {
    point = parseManifest(text, "the manifest");
  } catch {
    return undefined;
  }
  const { disks, aside = {}, files = [] } = point;
  const plain = (file: string): string => aside[file] ?? file;
  const images = disks.map(({ file }) => file);
  const others = disks.flatMap(({ map, digests }) => [map?.file ?? [], digests?.file ?? []].flat());
  return {
    text: () => named(text, plain, {}),
    aside: images.flatMap((from) => (plain(from) === from ? [] : { from, to: plain(from) })),
    named: [...images.map(plain), ...others, ...files.map(({ file }) => file)],
    families: [
      ...disks.flatMap(({ name, file }) => [plainName(file), `${name}.digests`]),
      ...others.map(plainName),
    ],
  };
}

/**
 * A manifest that names other files for some images. All else stays, also what this program knows nothing of,
 * and what lies aside already.
 * @param aside the new names of the files
 * @throws {DamageError} as `manifestTextOf`
 */
export function withImagesAside(text: string, aside: ReadonlyMap<string, string>): string {
  const { aside: before = {} } = JSON.parse(text) as { aside?: Readonly<Record<string, string>> };
  const stays = Object.entries(before).filter(([name]) => !aside.has(name));
  const moved = [...aside].map(([file, name]) => [name, before[file] ?? file]);
  return named(text, (file) => aside.get(file) ?? file, Object.fromEntries([...stays, ...moved]));
}

function named(
  text: string,
  nameOf: (file: string) => string,
  aside: Readonly<Record<string, string>>,
): string {
  const { aside: _, ...point } = JSON.parse(text) as { aside?: unknown; disks: { readonly file: string }[] };
  const disks = point.disks.map((disk) => ({ ...disk, file: nameOf(disk.file) }));
  return revised({ ...point, disks, ...(Object.keys(aside).length > 0 && { aside }) });
}

/**
 * The text of a manifest that takes the place of another one in an object store.
 * @param text the one that it replaces; what this program knows nothing of stays
 * @throws {DamageError} as `manifestTextOf`
 */
export function replacingManifest(text: string, point: Manifest): string {
  return revised(changed(text, point));
}

/** The same in a folder. @throws {DamageError} as `manifestTextOf` */
export function changedManifest(text: string, point: Manifest): string {
  return manifestTextOf(changed(text, point));
}

function changed(text: string, point: Manifest): object {
  const before = parseManifest(text, "the manifest");
  return rewritten(JSON.parse(text), before, JSON.parse(formatManifest(point))) as object;
}

/** Another text each time, so that each has an ETag of its own. */
function revised(point: object): string {
  return manifestTextOf({ ...point, revision: randomUUID() });
}
