import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { freePorts } from "../../bench/free-ports.js";

const run = promisify(execFile);

/** The store's own user, and another one whose buckets are not ours. */
export const MINE = { accessKeyId: "AKIDTEST", secretAccessKey: "secretsecretsecret" };
export const OTHER = { accessKeyId: "AKIDOTHER", secretAccessKey: "othersecretsecret" };

/** A real object store: Ceph, in memory, on loopback. */
export class Store implements AsyncDisposable {
  readonly endpoint: string;
  readonly #folder: string;
  readonly #pids: readonly number[];

  private constructor(endpoint: string, folder: string, pids: readonly number[]) {
    this.endpoint = endpoint;
    this.#folder = folder;
    this.#pids = pids;
  }

  static async start(): Promise<Store> {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-store-"));
    const [port, monitor] = await freePorts();
    const script = fileURLToPath(new URL("start-store.sh", import.meta.url));
    const { stdout } = await run("bash", [script, folder, `${port}`, `${monitor}`]);
    return new Store(`http://127.0.0.1:${port}`, folder, stdout.trim().split("\n").map(Number));
  }

  /** The SDK as a judge. */
  client(credentials = MINE, endpoint = this.endpoint): S3Client {
    return new S3Client({
      endpoint,
      credentials,
      region: "us-east-1",
      forcePathStyle: true,
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
    });
  }

  async makeBucket(name: string, credentials = MINE): Promise<void> {
    await this.client(credentials).send(new CreateBucketCommand({ Bucket: name }));
  }

  /** What a command that uses this store needs in its environment. */
  get environment(): Record<string, string> {
    return {
      AWS_ACCESS_KEY_ID: MINE.accessKeyId,
      AWS_SECRET_ACCESS_KEY: MINE.secretAccessKey,
      AWS_ENDPOINT_URL: this.endpoint,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pid of this.#pids.toReversed()) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended.
      }
    }
    await rm(this.#folder, { recursive: true, force: true, maxRetries: 5 });
  }
}
