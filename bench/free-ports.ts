/**
 * Ports of this machine on which nobody listens. They are none of those that Linux gives to outgoing connections
 * and to whoever listens on port 0, so that only another caller can take one before its server listens.
 */
import { createServer } from "node:net";

/** Linux gives those from 32768 on. */
const FIRST = 12_000;
const LAST = 32_000;

export async function freePort(): Promise<number> {
  for (;;) {
    const port = anyPort();
    if (await areFree(port)) return port;
  }
}

/** A port, and one whose neighbour is free too. */
export async function freePorts(): Promise<[number, number]> {
  for (;;) {
    const [one, two] = [await freePort(), anyPort()];
    if (Math.abs(one - two) > 1 && (await areFree(two, two + 1))) return [one, two];
  }
}

function anyPort(): number {
  return FIRST + Math.floor(Math.random() * (LAST - FIRST));
}

async function areFree(...ports: readonly number[]): Promise<boolean> {
  for (const port of ports) if (!(await isFree(port))) return false;
  return true;
}

/** On all addresses: a server may listen on any of them. */
function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, () => server.close(() => resolve(true)));
  });
}
