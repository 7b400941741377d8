import { join } from "node:path";
import { expect, it } from "vitest";
import { Repository } from "../../src/backup/repository/repository.js";
import { takePoint } from "../../src/backup/take/take-point.js";
import { type NbdClient, parseNbdUri } from "../../src/nbd/index.js";
import { makeFolder, startNbdkit, uriOf } from "../nbd/servers.js";
import { describeWith } from "../support/tools.js";

/** A server that turns every client away that would be one too many, as QEMU does with the 101st. */
const MOST = 64;

describeWith(["nbdkit"], "a point of many disks", () => {
  it.each([
    { disks: 30, asked: 4, connections: 60 },
    { disks: 30, asked: undefined, connections: 60 },
    { disks: 60, asked: 4, connections: 60 },
    { disks: 100, asked: 2, connections: 100 },
  ])("of $disks, with $asked connections each asked for, needs no more than 64 at once", async (wanted) => {
    await using folder = await makeFolder();
    await using server = await startNbdkit(folder, "--filter=limit", "memory", "256K", `limit=${MOST}`);
    const disks = Array.from({ length: wanted.disks }, (_, index) => ({
      name: `sd${index}`,
      address: parseNbdUri(uriOf(server.socket, `sd${index}`)),
    }));
    const clients: NbdClient[] = [];
    const connections = wanted.asked;
    const taken = await takePoint({
      repository: await Repository.openOrCreate(join(folder.path, "repo")),
      domain: { name: "guest", uuid: null },
      disks,
      checkpoint: null,
      format: "qcow2",
      digests: undefined,
      sync: false,
      tool: "test",
      connect: connections === undefined ? {} : { connections },
      window: { connections },
      confirm: async () => undefined,
      clients,
    });
    expect(taken.manifest.disks).toHaveLength(wanted.disks);
    expect(taken.connections).toBeLessThanOrEqual(wanted.connections);
    // Those that stay belong to the caller. Of more disks than connections, each has left when it was done.
    expect(clients.length).toBe(wanted.disks > MOST ? 0 : wanted.disks);
    for (const client of clients) await client.close();
  });
});
