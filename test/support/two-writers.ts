import { afterAll, beforeAll } from "vitest";
import { Bucket } from "../../src/backup/s3/bucket.js";
import { BreakingStore } from "./breaking-store.js";
import { restoreEnvironment } from "./environment.js";
import { Store } from "./store.js";

/**
 * Gives the tests of a suite two writers.
 * @param use gets them when they have started
 */
export function withTwoWriters(use: (writers: TwoWriters) => void): void {
  let writers: TwoWriters | undefined;
  beforeAll(async () => {
    writers = await TwoWriters.start();
    use(writers);
  });
  afterAll(async () => {
    await writers?.[Symbol.asyncDispose]();
  });
}

/** Two processes' views of one bucket in Ceph: the line of the first one can break. */
export class TwoWriters implements AsyncDisposable {
  readonly line: BreakingStore;
  /** Through the line. */
  readonly mine: Bucket;
  readonly other: Bucket;
  readonly #store: Store;
  readonly #before: NodeJS.ProcessEnv;

  private constructor(
    store: Store,
    line: BreakingStore,
    views: readonly [Bucket, Bucket],
    before: NodeJS.ProcessEnv,
  ) {
    this.#store = store;
    this.line = line;
    [this.mine, this.other] = views;
    this.#before = before;
  }

  static async start(): Promise<TwoWriters> {
    const before = { ...process.env };
    const store = await Store.start();
    const line = await BreakingStore.start(store);
    await store.makeBucket("backups");
    Object.assign(process.env, store.environment);
    const mine = await Bucket.open({ bucket: "backups", prefix: "", endpoint: line.endpoint });
    const other = await Bucket.open({ bucket: "backups", prefix: "" });
    return new TwoWriters(store, line, [mine, other], before);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    restoreEnvironment(this.#before);
    this.mine.close();
    this.other.close();
    await this.line[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }
}
