import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect } from "vitest";
import {
  NbdServer,
  type NbdServerEvent,
  type NbdServerOptions,
  type ServedExport,
} from "../../../src/nbd/server/index.js";
import { infoQuery, RawClient } from "./raw-client.js";
import { temporaryDirectory } from "./tools.js";

const GO = 7;

/** Servers with one export, `disk`. */
interface RecordedServers {
  /** What they told during the test. */
  readonly events: NbdServerEvent[];
  /** Where it listens. */
  readonly socket: () => string;
  /** Starts one, which is closed at the end of the test. */
  readonly listen: (served: ServedExport, options?: Partial<NbdServerOptions>) => Promise<NbdServer>;
}

/** Call it in a `describe`. */
export function recordServers(): RecordedServers {
  let directory: Awaited<ReturnType<typeof temporaryDirectory>>;
  const servers: NbdServer[] = [];
  const events: NbdServerEvent[] = [];

  beforeAll(async () => {
    directory = await temporaryDirectory();
  });
  afterEach(async () => {
    await Promise.all(servers.splice(0).map((server) => server.close()));
    events.length = 0;
  });
  afterAll(() => directory[Symbol.asyncDispose]());

  const socket = (): string => join(directory.path, "nbd.sock");

  async function listen(served: ServedExport, options: Partial<NbdServerOptions> = {}): Promise<NbdServer> {
    const server = await NbdServer.listen({
      exports: new Map([["disk", served]]),
      address: { path: socket() },
      onEvent: (event) => events.push(event),
      ...options,
    });
    servers.push(server);
    return server;
  }

  return { events, socket, listen };
}

/** A client in transmission. */
export async function connected(server: NbdServer): Promise<RawClient> {
  const client = await RawClient.greeted(server);
  expect(await client.outcome(GO, infoQuery("disk"))).toBe(1);
  return client;
}
