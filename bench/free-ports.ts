/** Ports of this machine on which nobody listens. */
import { createServer } from "node:net";

/** A port, and one whose neighbour is free too. */
export async function freePorts(): Promise<[number, number]> {
  for (;;) {
    const [one, two] = [await listening(0), await listening(0)];
    const ports = [one, two].map((server) => (server.address() as { port: number }).port) as [number, number];
    const next = await listening(ports[1] + 1).catch(() => undefined);
    for (const server of [one, two, next]) server?.close();
    if (next) return ports;
  }
}

function listening(port: number): Promise<ReturnType<typeof createServer>> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => resolve(server));
  });
}
