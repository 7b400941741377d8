import { connect, createServer, type NetConnectOpts, type Server, type Socket } from "node:net";

/** A TCP port of this machine that leads to a server, and whose connections break. */
export class CuttingLine implements AsyncDisposable {
  readonly port: number;
  /** Connections that it has broken. */
  cuts = 0;
  /** Refuses clients while it is set. */
  isDown = false;
  /** Clients that it has refused. */
  refused = 0;
  readonly #server: Server;
  readonly #clients = new Set<Socket>();

  private constructor(server: Server, port: number) {
    this.#server = server;
    this.port = port;
  }

  /** @param lengths after how many of the server's bytes the next connection breaks; none: never */
  static async to(
    target: NetConnectOpts,
    lengths: Iterator<number> = [][Symbol.iterator](),
    { host = "127.0.0.1", port = 0 }: { readonly host?: string; readonly port?: number } = {},
  ): Promise<CuttingLine> {
    const server = createServer({ noDelay: true });
    await new Promise<void>((resolve) => server.listen(port, host, resolve));
    const address = server.address();
    const line = new CuttingLine(server, typeof address === "object" && address ? address.port : 0);
    server.on("connection", (client) => line.#join(client, target, lengths.next().value));
    return line;
  }

  uri(exportName = ""): string {
    return `nbd://127.0.0.1:${this.port}/${exportName}`;
  }

  /** Breaks every connection. */
  cut(): void {
    for (const client of this.#clients) client.resetAndDestroy();
  }

  #join(client: Socket, target: NetConnectOpts, length: number | undefined): void {
    if (this.isDown) {
      this.refused += 1;
      // As a machine does on which nobody listens.
      client.on("error", () => undefined);
      client.resetAndDestroy();
      return;
    }
    const upstream = connect(target);
    this.#clients.add(client);
    for (const socket of [client, upstream]) {
      socket.on("error", () => undefined);
      socket.on("close", () => {
        this.#clients.delete(client);
        client.destroy();
        upstream.destroy();
      });
    }
    client.pipe(upstream);
    let left = length ?? Number.POSITIVE_INFINITY;
    upstream.on("data", (bytes: Buffer) => {
      if (bytes.length < left) {
        left -= bytes.length;
        if (!client.write(bytes)) {
          upstream.pause();
          client.once("drain", () => upstream.resume());
        }
        return;
      }
      this.cuts += 1;
      // Up to the very byte, wherever in a message that is.
      client.end(bytes.subarray(0, left), () => client.destroy());
      upstream.destroy();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

/** Lengths that a seed repeats. Many connections end in headers, since they begin with them. */
export function* anyLength(seed: number, least: number, most: number): Generator<number> {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    yield least + (state % (most - least));
  }
}
