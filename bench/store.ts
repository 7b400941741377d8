/**
 * The object store of the workloads that need one: Ceph, of one node, in memory, on loopback. Those that read
 * share one, since filling it takes longer than what is measured. Each run that writes gets another one, since
 * what is removed stays in Ceph's memory for hours.
 */

import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { execa } from "execa";
import { type Ceph, MINE, startCeph } from "./ceph.js";
import { NBDPULL } from "./paths.js";

const BUCKET = "bench";

let started: Promise<BenchStore> | undefined;

export class BenchStore {
  readonly #ceph: Ceph;
  /** Addresses by the folders whose repositories they have. */
  readonly #copies = new Map<string, Promise<string>>();

  private constructor(ceph: Ceph) {
    this.#ceph = ceph;
  }

  /** The store, which ends with this process. From here on, programs that this process starts may use it. */
  static shared(): Promise<BenchStore> {
    started ??= BenchStore.#start();
    return started;
  }

  /** A store in which nothing is, in place of the one that was there. */
  static async another(): Promise<BenchStore> {
    const last = await started;
    if (last) await last.#ceph.end();
    started = BenchStore.#start();
    return await started;
  }

  static async #start(): Promise<BenchStore> {
    const ceph = await startCeph();
    const store = new BenchStore(ceph);
    Object.assign(process.env, {
      AWS_ACCESS_KEY_ID: MINE.accessKeyId,
      AWS_SECRET_ACCESS_KEY: MINE.secretAccessKey,
      AWS_ENDPOINT_URL: ceph.endpoint,
      AWS_REGION: "us-east-1",
    });
    const client = new S3Client({ credentials: MINE, forcePathStyle: true });
    await client.send(new CreateBucketCommand({ Bucket: BUCKET }));
    client.destroy();
    return store;
  }

  /** The address of a copy of a repository, which is made once. */
  copyOf(repository: string): Promise<string> {
    const known = this.#copies.get(repository) ?? this.#copy(repository);
    this.#copies.set(repository, known);
    return known;
  }

  async #copy(repository: string): Promise<string> {
    const address = this.emptyPlace();
    await execa(process.execPath, [NBDPULL, "init", address]);
    await execa(process.execPath, [NBDPULL, "copy", repository, address, "--quiet"]);
    return address;
  }

  #places = 0;

  /** An address below which nothing is. */
  emptyPlace(): string {
    this.#places += 1;
    return `s3://${BUCKET}/place-${this.#places}`;
  }
}
