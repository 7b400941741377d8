import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** A request of an object, or of a part of it. */
interface AskedOfSmallStore {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  /** By `performance.now()`. */
  readonly at: number;
}

const EMPTY_LIST = `<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`;

/**
 * A store in this process, which needs no Ceph: every bucket is there and empty, and a test answers whatever
 * else is asked.
 */
export class SmallStore implements AsyncDisposable {
  readonly endpoint: string;
  /** All requests but those for lists of objects. */
  readonly seen: AskedOfSmallStore[] = [];
  /** Default: nothing is answered. */
  answer: (asked: AskedOfSmallStore, answer: ServerResponse) => void = () => undefined;
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
    this.endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  static async start(): Promise<SmallStore> {
    let store: SmallStore | undefined;
    const server = createServer(({ method = "", url = "", headers }, answer) => {
      if (url.includes("list-type=2")) return void answer.end(EMPTY_LIST);
      const asked = { method, url, headers, at: performance.now() };
      store?.seen.push(asked);
      store?.answer(asked, answer);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    store = new SmallStore(server);
    return store;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
