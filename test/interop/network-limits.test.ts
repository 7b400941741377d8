/** What a server may take, set on the command line. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Command } from "commander";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { limitsOf, withLimits } from "../../bin/network-limits.js";
import { freshPaths } from "../support/fresh.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull } from "../support/nbdpull.js";
import { startServing } from "../support/serving.js";

const CLUSTER = 64 * 1024;

let chain: MemoryChain;
const fresh = freshPaths();
beforeAll(async () => {
  chain = await MemoryChain.start(64 * CLUSTER);
  for (let cluster = 0; cluster < 64; cluster += 2) {
    chain.disk.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, 0x11));
  }
  await chain.take({ full: true });
});
afterAll(() => chain[Symbol.asyncDispose]());

describe("limits for a server", () => {
  it("are those of the client, in its units", () => {
    const given = "--handshake-timeout 3 --idle-timeout 4 --min-rate 2M --map-timeout 5 --max-extents 6";
    const command = withLimits(new Command()).parse(given.split(" "), { from: "user" });
    expect(limitsOf(command.opts())).toEqual({
      ...{ connectTimeoutMs: 3000, idleTimeoutMs: 4000, minRate: 2 * 1024 * 1024 },
      ...{ mapTimeoutMs: 5000, maxExtents: 6 },
    });
    expect(limitsOf(withLimits(new Command()).parse(["--min-rate", "0"], { from: "user" }).opts())).toEqual({
      minRate: 0,
    });
    expect(limitsOf({})).toEqual({});
  });

  it.each(["0", "-1", "1.5", "x", "2000001"])("are no %s", async (text) => {
    const ran = await nbdpull("info", chain.uri, "--idle-timeout", text);
    expect([ran.code, ran.stderr]).toEqual([2, expect.stringContaining("whole number")]);
  });

  it.each(["1x", "0K", "1 KB"])("are no rate of %s, which is an error of usage", async (text) => {
    const ran = await nbdpull("info", chain.uri, "--min-rate", text);
    expect([ran.code, ran.stderr]).toEqual([2, expect.stringContaining("--min-rate")]);
  });

  it("bound the extents of a map, and let a disk through that is just as fragmented", async () => {
    const pull = (most: number) =>
      nbdpull("pull", chain.uri, fresh(`${most}.raw`), "--max-extents", `${most}`, "--json");
    const refused = await pull(63);
    expect([refused.code, refused.json()]).toMatchObject([1, { error: { code: "NBD_TOO_MANY_EXTENTS" } }]);
    expect((await pull(64)).code).toBe(0);
  });

  it("bound the handshake of a server that says nothing", async () => {
    const silent = createServer(() => undefined).listen(0, "127.0.0.1");
    await once(silent, "listening");
    const begun = performance.now();
    const uri = `nbd://127.0.0.1:${(silent.address() as AddressInfo).port}/`;
    const ran = await nbdpull("info", uri, "--handshake-timeout", "1", "--json");
    expect(ran.code).toBe(1);
    expect(performance.now() - begun).toBeLessThan(9000);
    silent.close();
  });

  it("bound the clients of serve", async () => {
    const socket = join(chain.folder, "serve.sock");
    await using _ = await startServing(chain.repository.path, "--socket", socket, "--max-clients", "1");
    const greeted = async ({
      mayWait = false,
    } = {}): Promise<{ readonly client: Socket; readonly bytes: number }> => {
      const client = connect(socket);
      let bytes = 0;
      client.on("data", (some: Buffer) => {
        bytes += some.length;
      });
      client.on("error", () => undefined);
      const isOver = [once(client, "data"), once(client, "close")];
      await Promise.race(mayWait ? [...isOver, sleep(5000)] : isOver);
      return { client, bytes };
    };
    const first = await greeted();
    const second = await greeted({ mayWait: true });
    expect([first.bytes > 0, second.bytes]).toEqual([true, 0]);
    first.client.destroy();
    second.client.destroy();
  });
});
