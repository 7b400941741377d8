import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { type Ceph, MINE, startCeph } from "../../bench/ceph.js";

/** A real object store: Ceph. */
export class Store implements AsyncDisposable {
  readonly #ceph: Ceph;

  private constructor(ceph: Ceph) {
    this.#ceph = ceph;
  }

  static async start(): Promise<Store> {
    return new Store(await startCeph());
  }

  get endpoint(): string {
    return this.#ceph.endpoint;
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
    await this.#ceph.end();
  }
}
