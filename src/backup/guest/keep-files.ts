/**
 * What a point keeps of its domain besides the disks: the definition, and the files that the domain starts
 * with.
 */

import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { hasCode, messageOf } from "../base/errors.js";
import { isZero } from "../base/zeroes.js";
import { NewFiles } from "../host/new-files.js";
import { createPrivate } from "../host/plain-files.js";
import { openTrustedFile } from "../host/trusted-file.js";
import { type BootFile, type NotKept, readBootNeeds, wordFor } from "../libvirt/documents/boot-files.js";
import { largestKept } from "../repository/kept-files.js";
import type { KeptFile, Manifest } from "../repository/manifest.js";

/** A domain's definition, as libvirt gives it. */
export interface Definition {
  readonly xml: string;
  /** The host that has the files it names, if that is another host. */
  readonly host: string | undefined;
  /** Other parts of the domain that are not kept. */
  readonly notKept?: readonly NotKept[] | undefined;
  /**
   * The number of QEMU's user, whose files are kept too; default: the user in the XML of a running domain.
   */
  readonly qemuUid?: number | undefined;
}

/** The kept files and the missing ones, as the manifest lists them. */
interface Kept {
  readonly files: KeptFile[];
  readonly notKept: NonNullable<Manifest["notKept"]>;
}

const DEFINITION = "domain.xml";
/** File names by role; a file of any other role is named after its role. */
const NAMES: Readonly<Record<string, string>> = { nvram: "nvram.fd", loader: "loader.fd" };
const MiB = 1024 * 1024;
const CHUNK = MiB;
/** What is zero in such a block stays a hole in the copy. */
const HOLE = 64 * 1024;
/** Copies of a changing file before giving up; firmware writes its variables in a short time. */
const ATTEMPTS = 3;

/**
 * Stores the definition, and copies of the files that it names, in `folder`. A file that can't be read causes
 * a warning and no failure, because the disks matter more.
 *
 * The files lie in folders that QEMU's user can change, and this process can read more than that user. So
 * only plain files of root and of QEMU's user are kept, up to a size, and no link that others made is
 * followed.
 *
 * QEMU keeps running meanwhile and nothing freezes the NVRAM, so its copy is from a moment shortly after that
 * of the disks. A file that changes while it is copied is copied again.
 *
 * @param onWarning called for each file that is not kept, and for each that kept changing
 * @throws the file system's error if a copy can't be written
 */
export async function keepFiles(
  { xml, host, notKept: beside = [], qemuUid }: Definition,
  folder: string,
  options: {
    readonly sync: boolean;
    readonly signal?: AbortSignal | undefined;
    readonly onWarning?: ((message: string) => void) | undefined;
  },
): Promise<Kept> {
  const needs = readBootNeeds(xml);
  const files = [await keepDefinition(xml, folder, options.sync)];
  const notKept = [...beside, ...needs.notKept];
  const owners = [needs.qemuUser?.uid, qemuUid].filter((uid) => uid !== undefined);
  for (const file of needs.files) {
    const what = wordFor(file.role, file.path);
    if (host !== undefined) {
      notKept.push({ what, reason: `it is on ${host}` });
      continue;
    }
    try {
      const name = unusedName(NAMES[file.role] ?? file.role, files);
      const { steady, ...copy } = await keepFile(file, join(folder, name), { ...options, owners });
      files.push({ role: file.role, file: name, source: file.path, ...copy });
      if (!steady) options.onWarning?.(`${what} was written to while it was copied: it may be torn`);
    } catch (error) {
      if (!(error instanceof Unkept)) throw error;
      // A domain that never ran has no NVRAM: libvirt creates it at the first start.
      const isNoneYet = file.role === "nvram" && !needs.isRunning && hasCode(error.cause, "ENOENT");
      if (!isNoneYet) notKept.push({ what, reason: error.message });
    }
  }
  for (const { what, reason } of notKept) options.onWarning?.(`${what} is not kept: ${reason}`);
  return { files, notKept };
}

async function keepDefinition(xml: string, folder: string, flush: boolean): Promise<KeptFile> {
  const bytes = Buffer.from(xml);
  await using file = await createPrivate(join(folder, DEFINITION));
  await file.writeFile(bytes);
  if (flush) await file.sync();
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  return { role: "definition", file: DEFINITION, source: null, length: bytes.length, sha256 };
}

function unusedName(name: string, files: readonly KeptFile[]): string {
  let unused = name;
  for (let i = 2; files.some(({ file }) => file === unused); i += 1) unused = `${name}-${i}`;
  return unused;
}

/** The source can't be read; `cause` says why. */
class Unkept extends Error {}

type Copy = Pick<KeptFile, "length" | "sha256"> & { readonly steady: boolean };

interface KeepOptions {
  readonly sync: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Users whose files are kept, beside root. */
  readonly owners: readonly number[];
}

async function keepFile(
  { role, path }: BootFile,
  target: string,
  { sync, signal, owners }: KeepOptions,
): Promise<Copy> {
  const most = largestKept(role);
  const source = await openTrustedFile(path, owners).catch(unkept);
  try {
    const { size } = await source.stat();
    if (size > most) throw tooLarge(size, most);
    await using files = new NewFiles();
    const copy = files.add(target, await createPrivate(target));
    for (let attempt = 1; ; attempt += 1) {
      const before = await stateOf(source);
      const { length, sha256 } = await copyBytes(source, copy, most, signal);
      const steady = (await stateOf(source)) === before;
      if (!steady && attempt < ATTEMPTS) continue;
      if (sync) await copy.sync();
      files.keep();
      return { length, sha256, steady };
    }
  } finally {
    await source.close();
  }
}

function tooLarge(size: number, most: number): Unkept {
  return new Unkept(`it has ${size} bytes, and a file of that kind more than ${most} is not copied`);
}

/** A string that changes with every write to the file. */
async function stateOf(file: FileHandle): Promise<string> {
  const { size, mtimeNs, ctimeNs } = await file.stat({ bigint: true });
  return `${size} ${mtimeNs} ${ctimeNs}`;
}

/** Copies a file, with its holes, that may grow meanwhile to at most `most` bytes. */
async function copyBytes(
  source: FileHandle,
  copy: FileHandle,
  most: number,
  signal: AbortSignal | undefined,
): Promise<Pick<KeptFile, "length" | "sha256">> {
  const hash = createHash("sha256");
  const buffer = Buffer.alloc(CHUNK);
  let length = 0;
  // An earlier attempt may have written where there is a hole now.
  await copy.truncate(0);
  for (;;) {
    signal?.throwIfAborted();
    const { bytesRead } = await source.read(buffer, 0, CHUNK, length).catch(unkept);
    if (bytesRead === 0) break;
    const bytes = buffer.subarray(0, bytesRead);
    hash.update(bytes);
    if (length + bytesRead > most) throw tooLarge(length + bytesRead, most);
    for (let at = 0; at < bytesRead; at += HOLE) {
      const block = bytes.subarray(at, at + HOLE);
      if (!isZero(block)) await writeAll(copy, block, length + at);
    }
    length += bytesRead;
  }
  await copy.truncate(length);
  return { length, sha256: hash.digest("hex") };
}

async function writeAll(file: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}

function unkept(cause: unknown): never {
  throw new Unkept(messageOf(cause), { cause });
}
