import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import {
  CopyObjectCommand,
  CreateBucketCommand,
  type CreateBucketCommandInput,
  DeleteObjectCommand,
  GetObjectCommand,
  PutObjectCommand,
  type S3Client,
} from "@aws-sdk/client-s3";
import { afterAll, beforeAll, beforeEach } from "vitest";
import { BreakingStore } from "./breaking-store.js";
import { restoreEnvironment } from "./environment.js";
import { halfInStore, keysIn, leftInStore } from "./left-in-store.js";
import { Store } from "./store.js";

/**
 * Gives the tests of a suite a lab, and begins a try of it before each of them. Call it before the hooks that
 * need the lab.
 * @param use gets it when it has started
 */
export function withStoreLab(use: (lab: StoreLab) => void): void {
  let lab: StoreLab | undefined;
  beforeAll(async () => {
    lab = await StoreLab.start();
    use(lab);
  });
  afterAll(async () => {
    await lab?.[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    await lab?.begin();
  });
}

/**
 * A store behind a line that breaks as it is told, which the commands of this process talk to. Each try of a
 * test calls {@link begin}, and has a bucket and a folder of its own: what another one has left there, or the
 * first try of the same test, is in nobody's way.
 */
export class StoreLab implements AsyncDisposable {
  readonly store: Store;
  readonly line: BreakingStore;
  /** The SDK as a judge; the line is not between them. */
  readonly client: S3Client;
  /** Of this try. */
  bucket = "";
  folder = "";
  #buckets = 0;
  readonly #folders: string;
  readonly #before = { ...process.env };

  private constructor(store: Store, line: BreakingStore, folders: string) {
    this.store = store;
    this.line = line;
    this.client = store.client();
    this.#folders = folders;
  }

  /** With a first bucket and folder, which hold what several tests need. */
  static async start(): Promise<StoreLab> {
    const folders = await mkdtemp(join(tmpdir(), "nbdpull-store-lab-"));
    let begun: Store | StoreLab | undefined;
    try {
      const store = await Store.start();
      begun = store;
      const lab = new StoreLab(store, await BreakingStore.start(store), folders);
      begun = lab;
      Object.assign(process.env, lab.environment);
      await lab.begin();
      return lab;
    } catch (error) {
      // Why it did not start says more than what ends badly after it.
      await begun?.[Symbol.asyncDispose]().catch(() => undefined);
      await rm(folders, { recursive: true, force: true });
      throw error;
    }
  }

  get environment(): Record<string, string> {
    return { ...this.store.environment, AWS_ENDPOINT_URL: this.line.endpoint };
  }

  /** Begins a try: nothing breaks, and there is nothing in its bucket and folder. */
  async begin(): Promise<void> {
    this.line.fault = () => undefined;
    this.bucket = await this.makeBucket("lab");
    this.folder = join(this.#folders, this.bucket);
    await mkdir(this.folder);
  }

  /** @returns its name, which no other one has */
  async makeBucket(name: string, options: Partial<CreateBucketCommandInput> = {}): Promise<string> {
    this.#buckets += 1;
    const Bucket = `${name}-${this.#buckets}`;
    await this.client.send(new CreateBucketCommand({ ...options, Bucket }));
    return Bucket;
  }

  address(prefix: string, bucket = this.bucket): string {
    return `s3://${bucket}/${prefix}`;
  }

  async put(Key: string, Body: Buffer | string, Bucket = this.bucket): Promise<void> {
    await this.client.send(new PutObjectCommand({ Bucket, Key, Body }));
  }

  async read(Key: string, Bucket = this.bucket): Promise<Buffer> {
    const { Body } = await this.client.send(new GetObjectCommand({ Bucket, Key }));
    return Buffer.from((await Body?.transformToByteArray()) ?? []);
  }

  async remove(Key: string, Bucket = this.bucket): Promise<void> {
    await this.client.send(new DeleteObjectCommand({ Bucket, Key }));
  }

  /** All keys that begin so. */
  keys(prefix: string, bucket = this.bucket): Promise<string[]> {
    return keysIn(this.client, bucket, prefix);
  }

  /** See {@link leftInStore}, of a repository. */
  left(repository: string): Promise<string[]> {
    return leftInStore(this.client, this.bucket, `${repository}/`);
  }

  /** See {@link halfInStore}, of a repository. */
  half(repository: string): Promise<string[]> {
    return halfInStore(this.client, this.bucket, `${repository}/`);
  }

  /** The store copies a repository of a bucket, as a program would. @returns the address of the copy */
  async copyOf(repository: string, from: string, to: string): Promise<string> {
    for (const key of await keysIn(this.client, from, `${repository}/`)) {
      const Key = key.replace(repository, to);
      const CopySource = `${from}/${key}`;
      await this.client.send(new CopyObjectCommand({ Bucket: this.bucket, Key, CopySource }));
    }
    return this.address(to);
  }

  /** Puts a repository of a folder there, as another program would. @returns its address */
  async upload(folder: string, to: string): Promise<string> {
    for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const path = join(entry.parentPath, entry.name);
      await this.put(`${to}/${relative(folder, path)}`, await readFile(path));
    }
    return this.address(to);
  }

  /** As `rclone copy` does. @returns the folder, which has nothing else */
  async download(repository: string): Promise<string> {
    const path = join(this.folder, repository);
    await rm(path, { recursive: true, force: true });
    for (const key of await this.keys(`${repository}/`)) {
      await mkdir(dirname(join(this.folder, key)), { recursive: true });
      await writeFile(join(this.folder, key), await this.read(key));
    }
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    restoreEnvironment(this.#before);
    try {
      await this.line[Symbol.asyncDispose]();
    } finally {
      try {
        await this.store[Symbol.asyncDispose]();
      } finally {
        await rm(this.#folders, { recursive: true, force: true });
      }
    }
  }
}
