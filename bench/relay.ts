import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { ClientHalf, type Counts } from "./conversation.js";
import type { Traffic } from "./result.js";

/**
 * Silence on both sides for this time means that the client waits. It is longer than the pauses of a client
 * that is only busy.
 */
const QUIET_MS = 3;

interface Line {
  readonly client: Socket;
  readonly half: ClientHalf;
  /** What the server has said and the client hasn't heard yet. */
  held: Buffer[];
  serverHasEnded: boolean;
}

/**
 * Stands between clients and a server on a Unix socket, and counts requests and round trips. It holds the
 * server's replies back until both sides are silent, and then passes all of them on at once. The number of
 * times that it does so is the number of round trips that the client would wait for on a line with a high
 * latency, however many requests were in flight in each.
 */
export class CountingRelay implements AsyncDisposable {
  readonly #server: Server;
  readonly #lines = new Set<Line>();
  readonly #halves: ClientHalf[] = [];
  readonly #timer: NodeJS.Timeout;
  #lastWord = 0;
  #roundTrips = 0;
  #error: unknown;

  private constructor(upstream: string) {
    this.#server = createServer((client) => this.#accept(client, upstream));
    this.#timer = setInterval(() => this.#releaseWhenQuiet(), 1);
  }

  static async listen(socket: string, upstream: string): Promise<CountingRelay> {
    const relay = new CountingRelay(upstream);
    relay.#server.listen(socket);
    await once(relay.#server, "listening");
    return relay;
  }

  /** @throws where a client has said something that can't be counted */
  get traffic(): Traffic {
    if (this.#error !== undefined) throw this.#error;
    const sum = (name: keyof Counts): number =>
      this.#halves.reduce((total, { counts }) => total + counts[name], 0);
    return {
      connections: this.#halves.length,
      options: sum("options"),
      reads: sum("reads"),
      readBytes: sum("readBytes"),
      blockStatus: sum("blockStatus"),
      others: sum("others"),
      roundTrips: this.#roundTrips,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    for (const { client } of this.#lines) client.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }

  #accept(client: Socket, upstream: string): void {
    const server = connect(upstream);
    const line: Line = { client, half: new ClientHalf(), held: [], serverHasEnded: false };
    this.#lines.add(line);
    this.#halves.push(line.half);
    const heard = (): void => {
      this.#lastWord = performance.now();
    };
    heard();
    client.on("data", (bytes) => {
      heard();
      server.write(bytes);
      try {
        line.half.push(bytes);
      } catch (error) {
        this.#error ??= error;
      }
    });
    client.on("end", () => server.end());
    client.on("close", () => {
      this.#lines.delete(line);
      server.destroy();
    });
    server.on("data", (bytes) => {
      heard();
      line.held.push(bytes);
    });
    server.on("close", () => {
      line.serverHasEnded = true;
    });
    // Either side may go without a farewell; what comes of that is the client's to say.
    client.on("error", () => undefined);
    server.on("error", () => undefined);
  }

  #releaseWhenQuiet(): void {
    if (performance.now() - this.#lastWord < QUIET_MS) return;
    let released = false;
    for (const line of this.#lines) {
      for (const bytes of line.held) line.client.write(bytes);
      released ||= line.held.length > 0;
      line.held = [];
      if (line.serverHasEnded) line.client.end();
    }
    if (!released) return;
    this.#roundTrips += 1;
    this.#lastWord = performance.now();
  }
}
