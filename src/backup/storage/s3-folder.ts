import { DamageError, hasCode } from "../base/errors.js";
import { formatS3Address } from "../s3/address.js";
import type { StoredObject } from "../s3/asker.js";
import type { Bucket } from "../s3/bucket.js";
import { addUploadRule } from "../s3/lifecycle.js";
import { probe, probeConditions, removeProbes } from "../s3/probe.js";
import { createObject } from "./create-object.js";
import { findLeftovers } from "./find-leftovers.js";
import { KeptPieces } from "./kept-pieces.js";
import type { RecordFolder } from "./record-folder.js";
import { S3Place } from "./s3-file.js";
import { S3Records } from "./s3-records.js";
import { writeInS3 } from "./s3-writing.js";
import type {
  StoreAbilities,
  StoredEntry,
  StoredFolder,
  StoredStatus,
  StoreRoot,
  StoreWriteOptions,
} from "./stored-folder.js";
import type { KeptVersion, StoredLeftovers, StoreWriting } from "./stored-writing.js";

/** Bytes of files that were read ahead, for all files together. */
const KEPT_BYTES = 24 * 1024 * 1024;
/** A domain with more objects is none of ours: a point has a few. */
const MOST_OBJECTS = 1_000_000;

/**
 * The prefix of a bucket that a repository lies in. The objects of a domain are listed once, when the domain
 * is first looked at, and again after `refresh`: until then it is seen as it was at that moment.
 */
export class S3Root implements StoreRoot {
  readonly path: string;
  readonly foldersAppearWhole = false;
  readonly #bucket: Bucket;
  readonly #prefix: string;
  readonly #kept = new KeptPieces(KEPT_BYTES);
  readonly #folders = new Map<string, Promise<Tree>>();

  constructor(bucket: Bucket) {
    const { bucket: name, prefix } = bucket.address;
    this.path = formatS3Address({ bucket: name, prefix });
    this.#bucket = bucket;
    this.#prefix = prefix;
  }

  async realPath(): Promise<string> {
    return formatS3Address(this.#bucket.address);
  }

  withSignal(signal: AbortSignal | undefined): S3Root {
    return new S3Root(this.#bucket.withSignal(signal));
  }

  refresh(name: string): void {
    this.#folders.delete(name);
  }

  async folder(name: string): Promise<StoredFolder | undefined> {
    assertName(name);
    const listing = this.#folders.get(name) ?? this.#list(name);
    this.#folders.set(name, listing);
    const tree = await listing.catch((error: unknown) => {
      this.refresh(name);
      throw error;
    });
    if (isEmpty(tree)) return undefined;
    return new S3Folder(`${this.path}/${name}`, this.#bucket, tree, this.#kept);
  }

  async entries(): Promise<readonly StoredEntry[]> {
    const names = await this.#bucket.folders(this.#prefix);
    return names.filter((name) => name !== "").map(directory);
  }

  async names(): Promise<readonly string[]> {
    return (await this.entries()).map(({ name }) => name);
  }

  async find(name: string): Promise<StoredStatus | undefined> {
    assertName(name);
    const object = await this.#bucket.find(`${this.#prefix}${name}`);
    if (object) return { ...file(name), size: object.size };
    return (await this.folder(name)) && { ...directory(name), size: 0 };
  }

  async read(name: string, most: number): Promise<Buffer> {
    assertName(name);
    return await readWhole(this.#bucket, { key: `${this.#prefix}${name}` }, `${this.path}/${name}`, most);
  }

  /** @throws {RangeError} always: what is read at positions lies in the folder of a domain */
  at(name: string): never {
    throw new RangeError(`${this.path}/${name} is no file of a domain`);
  }

  async probe(): Promise<StoreAbilities> {
    return await probe(this.#bucket);
  }

  async probeConditions(): Promise<StoreAbilities> {
    return await probeConditions(this.#bucket);
  }

  async removeTrials(): Promise<void> {
    await removeProbes(this.#bucket);
  }

  async endOldUploads(): Promise<boolean> {
    return await addUploadRule(this.#bucket);
  }

  async isEmpty(): Promise<boolean> {
    for await (const { key } of this.#bucket.list(this.#prefix)) {
      if (!key.slice(this.#prefix.length).startsWith(".")) return false;
    }
    return true;
  }

  async create(name: string, content: string, abilities: StoreAbilities): Promise<boolean> {
    assertName(name);
    return await createObject(this.#bucket, `${this.#prefix}${name}`, Buffer.from(content), { abilities });
  }

  async write(name: string, { signal, abilities, ...points }: StoreWriteOptions): Promise<StoreWriting> {
    assertName(name);
    const options = { signal, abilities };
    const place = {
      // What was begun is ended in order after an interrupt too.
      ...{ bucket: this.#bucket.withSignal(undefined), path: `${this.path}/${name}` },
      prefix: `${this.#prefix}${name}/`,
      ...points,
      onChange: () => this.refresh(name),
    };
    const writing = await writeInS3(place, { ...options, of: name });
    this.refresh(name);
    return writing;
  }

  records(name: string, id: string, manifest: string): RecordFolder {
    assertName(name);
    assertName(id);
    const prefix = `${this.#prefix}${name}/`;
    return new S3Records({ bucket: this.#bucket, prefix, id, manifest, onChange: () => this.refresh(name) });
  }

  async leftovers(
    name: string,
    { signal, ...points }: Parameters<StoreRoot["leftovers"]>[1],
  ): Promise<StoredLeftovers[]> {
    assertName(name);
    return await findLeftovers(
      { bucket: this.#bucket, prefix: `${this.#prefix}${name}/`, ...points },
      { signal },
    );
  }

  async keptVersion(name: string, id: string, file: string): Promise<KeptVersion | undefined> {
    for (const each of [name, id, file]) assertName(each);
    return await this.#bucket.keptVersion(`${this.#prefix}${name}/${id}/${file}`).catch((error: unknown) => {
      if (hasCode(error, "E_S3_MISSING")) return undefined;
      throw error;
    });
  }

  async close(): Promise<void> {
    this.#bucket.close();
  }

  /** Nothing: whoever has opened the store closes it. */
  async [Symbol.asyncDispose](): Promise<void> {}

  async #list(name: string): Promise<Tree> {
    const prefix = `${this.#prefix}${name}/`;
    const tree = emptyTree();
    let objects = 0;
    for await (const object of this.#bucket.list(prefix)) {
      objects += 1;
      if (objects > MOST_OBJECTS) {
        const message = `${this.path}/${name} has more than ${MOST_OBJECTS} objects: it is no domain of a repository. Find out who has put them there`;
        throw new DamageError("E_S3_TOO_LARGE", message, { details: { key: prefix } });
      }
      plant(tree, object.key.slice(prefix.length).split("/"), object);
    }
    return tree;
  }
}

/** What was listed below a prefix. */
interface Tree {
  readonly files: Map<string, StoredObject>;
  readonly folders: Map<string, Tree>;
}

function emptyTree(): Tree {
  return { files: new Map(), folders: new Map() };
}

function isEmpty({ files, folders }: Tree): boolean {
  return files.size === 0 && folders.size === 0;
}

/** Keys with empty names are no files: some programs make an object `folder/` for each folder. */
function plant(tree: Tree, names: readonly string[], object: StoredObject): void {
  if (names.includes("")) return;
  const last = names.at(-1) ?? "";
  let at = tree;
  for (const name of names.slice(0, -1)) {
    const next = at.folders.get(name) ?? emptyTree();
    at.folders.set(name, next);
    at = next;
  }
  at.files.set(last, object);
}

/** A folder below a domain's, or the domain's, as it was listed. */
class S3Folder implements StoredFolder {
  readonly path: string;
  readonly foldersAppearWhole = false;
  readonly #bucket: Bucket;
  readonly #tree: Tree;
  readonly #kept: KeptPieces;

  constructor(path: string, bucket: Bucket, tree: Tree, kept: KeptPieces) {
    this.path = path;
    this.#bucket = bucket;
    this.#tree = tree;
    this.#kept = kept;
  }

  async folder(name: string): Promise<StoredFolder | undefined> {
    assertName(name);
    const tree = this.#tree.folders.get(name);
    return tree && new S3Folder(`${this.path}/${name}`, this.#bucket, tree, this.#kept);
  }

  async entries(): Promise<readonly StoredEntry[]> {
    const { files, folders } = this.#tree;
    return [...[...files.keys()].map(file), ...[...folders.keys()].map(directory)];
  }

  async names(): Promise<readonly string[]> {
    return (await this.entries()).map(({ name }) => name);
  }

  async find(name: string): Promise<StoredStatus | undefined> {
    assertName(name);
    const object = this.#tree.files.get(name);
    if (object) {
      const { size, etag, modifiedAt } = object;
      return { ...file(name), size, etag, mtimeMs: modifiedAt.getTime() };
    }
    return this.#tree.folders.has(name) ? { ...directory(name), size: 0 } : undefined;
  }

  async read(name: string, most: number): Promise<Buffer> {
    assertName(name);
    const path = `${this.path}/${name}`;
    const object = this.#tree.files.get(name);
    if (!object) throw missing(path);
    return await readWhole(this.#bucket, object, path, most);
  }

  at(name: string): S3Place {
    assertName(name);
    return new S3Place(`${this.path}/${name}`, this.#bucket, this.#tree.files.get(name), this.#kept);
  }

  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** @param object with the ETag that it was listed with, unless it was not listed */
async function readWhole(
  bucket: Bucket,
  { key, etag }: { readonly key: string; readonly etag?: string },
  path: string,
  most: number,
): Promise<Buffer> {
  const found = await bucket.get(key, most, { etag });
  if (found) return found.bytes;
  throw missing(path);
}

/** Like the file system's error, so that whoever expects a file to be missing finds the same. */
function missing(path: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`ENOENT: no such object, open '${path}'`), { code: "ENOENT", path });
}

/** @throws {RangeError} */
function assertName(name: string): void {
  if (name !== "" && name !== "." && name !== ".." && !/[/\0]/.test(name)) return;
  throw new RangeError(`${JSON.stringify(name)} is not the name of a file`);
}

function file(name: string): StoredEntry {
  return { name, isFile: () => true, isDirectory: () => false, isSymbolicLink: () => false };
}

function directory(name: string): StoredEntry {
  return { name, isFile: () => false, isDirectory: () => true, isSymbolicLink: () => false };
}
