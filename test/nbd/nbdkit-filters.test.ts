/** What nbdkit's filters and scripted plugins do to a client. */

import { rm, symlink, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { NbdClient, type NbdEvent } from "../../src/nbd/index.js";
import { collect } from "../support/collect.js";
import { expectRead } from "../support/maps.js";
import { describeWith } from "../support/tools.js";
import { type Folder, makeFolder, pattern, startNbdkit, uriOf } from "./servers.js";

const MiB = 1024 * 1024;

describeWith(["nbdkit"], "with nbdkit's filters", () => {
  let folder: Folder;
  let image: string;
  const at = (name: string): string => join(folder.path, name);
  beforeAll(async () => {
    folder = await makeFolder();
    image = at("disk.raw");
    await writeFile(image, pattern(0, 3 * MiB));
  });
  afterAll(async () => {
    await folder[Symbol.asyncDispose]();
  });

  async function extentsOf(client: NbdClient): Promise<unknown[]> {
    const batches = await collect(client.blockStatus());
    return batches.flatMap(({ contexts }) => [...(contexts.get("base:allocation") ?? [])]);
  }

  it("treats everything as data if the server reports no extents", async () => {
    await using server = await startNbdkit(folder, "--filter=noextents", "memory", "8M");
    await using client = await NbdClient.connect(server.uri, { optionalContexts: ["base:allocation"] });
    expect(await extentsOf(client)).toEqual([{ offset: 0, length: 8 * MiB, flags: 0 }]);
  });

  it("reads a window of a disk with any start and end", async () => {
    const filter = ["--filter=offset", "-r", "file", image, "offset=4096", `range=${MiB + 77}`];
    await using server = await startNbdkit(folder, ...filter);
    await using client = await NbdClient.connect(server.uri);
    expect(client.export.size).toBe(MiB + 77);
    const target = Buffer.alloc(MiB + 77);
    await client.read(0, target);
    expect(target.equals(pattern(4096, MiB + 77))).toBe(true);
  });

  it("works if the server allows only one connection", async () => {
    await using server = await startNbdkit(folder, "--filter=limit", "-r", "file", image, "limit=1");
    const events: NbdEvent[] = [];
    await using client = await NbdClient.connect(server.uri, {
      connections: 4,
      onEvent: (event) => events.push(event),
    });
    await expectRead(client, 0, 3 * MiB);
    await expect
      .poll(() => events.map(({ type }) => type))
      .toEqual(["opened", "not-opened", "not-opened", "not-opened"]);
    expect(client.connections).toBe(1);
  });

  it("waits for a slow server, and doesn't consider it silent", async () => {
    const rate = ["--filter=rate", "-r", "file", image, "rate=8M", "burstiness=0.01"];
    await using server = await startNbdkit(folder, ...rate);
    await using client = await NbdClient.connect(server.uri, { idleTimeoutMs: 2000 });
    const pieces = Array.from({ length: 16 }, (_, index) => expectRead(client, index * 16_384, 16_384));
    await Promise.all(pieces);
  });

  it("continues if a paused server resumes in time, and gives up otherwise", async () => {
    const control = at("pause.sock");
    const args = ["--filter=pause", "-r", "file", image, `pause-control=${control}`];
    await using server = await startNbdkit(folder, ...args);
    const say = (letter: string) =>
      new Promise<string>((resolve, reject) => {
        const socket = connect(control, () => socket.write(letter));
        socket.once("data", (answer: Buffer) => {
          socket.destroy();
          resolve(answer.toString());
        });
        socket.once("error", reject);
      });
    await using patient = await NbdClient.connect(server.uri, { idleTimeoutMs: 60_000 });
    await using client = await NbdClient.connect(server.uri, { idleTimeoutMs: 300 });
    await say("p");
    const reading = expectRead(patient, 0, 4096);
    setTimeout(() => void say("r"), 100);
    await reading;
    await say("p");
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_IDLE_TIMEOUT" });
    await say("r");
  });

  it("says goodbye, so that a server that ends with its last client does end", async () => {
    await using server = await startNbdkit(folder, "--filter=exitlast", "-r", "file", image);
    const client = await NbdClient.connect(server.uri);
    await expectRead(client, 0, 4096);
    await client.close();
    // A probe that still finds the server must disconnect too, or the server would stay for it.
    const look = (): Promise<string> =>
      NbdClient.connect(server.uri).then(
        (another) => another.close().then(() => "there"),
        (error: { code: string }) => error.code,
      );
    await expect.poll(look).toBe("NBD_CONNECT_FAILED");
  });

  it("reads to the end from a server that was told to exit, and finds it gone afterwards", async () => {
    const signal = at("go");
    const filter = [
      "--filter=exitwhen",
      "-r",
      "file",
      image,
      `exit-when-file-created=${signal}`,
      "exit-when-poll=1",
    ];
    await using server = await startNbdkit(folder, ...filter);
    const client = await NbdClient.connect(server.uri);
    await writeFile(signal, "");
    await expectRead(client, 0, 4096);
    await client.close();
    await expect
      .poll(() =>
        NbdClient.connect(server.uri).then(
          (late) => late.close(),
          (error: { code: string }) => error.code,
        ),
      )
      .toBe("NBD_CONNECT_FAILED");
  });

  it("moves to a restarted server", async () => {
    const socket = at("again.sock");
    // Both have the same address: a link that is moved from one to the other.
    const start = () => startNbdkit(folder, "-r", "file", image);
    const first = await start();
    await symlink(first.socket, socket);
    const events: NbdEvent[] = [];
    await using client = await NbdClient.connect(uriOf(socket), {
      reconnect: { attempts: 20, delayMs: 10, maxDelayMs: 50 },
      onEvent: (event) => events.push(event),
    });
    await expectRead(client, 0, 4096);
    await first.kill();
    await rm(socket);
    const reading = expectRead(client, MiB, MiB);
    await expect.poll(() => events.map(({ type }) => type)).toContain("reconnect-failed");
    await using second = await start();
    await symlink(second.socket, socket);
    await reading;
    expect(events.slice(-2)).toMatchObject([{ type: "opened", connections: 1 }, { type: "back" }]);
    // A server that is told to end waits for its clients.
    await client.close();
  });

  it("disconnects from a server that is shutting down, and continues when it is back", async () => {
    const flag = at("shutting-down");
    const pread = `if [ -e ${flag} ]; then rm ${flag}; echo ESHUTDOWN bye >&2; exit 1; fi; head -c $3 /dev/zero`;
    const plugin = ["eval", "get_size=echo 1M", "thread_model=echo parallel", `pread=${pread}`];
    await using server = await startNbdkit(folder, ...plugin);
    await writeFile(flag, "");
    {
      await using client = await NbdClient.connect(server.uri);
      await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ errno: "ESHUTDOWN" });
      expect(client.connections).toBe(0);
    }
    await writeFile(flag, "");
    await using client = await NbdClient.connect(server.uri, { reconnect: { delayMs: 1 } });
    const target = Buffer.alloc(512, 0xee);
    await client.read(0, target);
    expect(target.equals(Buffer.alloc(512))).toBe(true);
  });

  it("reports a plugin's errors by their errno", async () => {
    const pread = "case $4 in 0) e=EPERM;; 512) e=ENOMEM;; 1024) e=ENOSPC;; esac; echo $e no >&2; exit 1";
    await using server = await startNbdkit(folder, "eval", "get_size=echo 1M", `pread=${pread}`);
    await using client = await NbdClient.connect(server.uri);
    for (const [index, errno] of ["EPERM", "ENOMEM", "ENOSPC"].entries()) {
      await expect(client.read(index * 512, Buffer.alloc(512))).rejects.toMatchObject({
        code: "NBD_REQUEST_FAILED",
        errno,
      });
    }
    expect(client.connections).toBe(1);
  });

  it("maps a plugin's extents of any size", async () => {
    const extents = "echo 0 512 hole; echo 512 512 zero; echo 1024 1024; echo 2048 1M hole,zero";
    const plugin = ["eval", "get_size=echo 1M", "can_extents=exit 0", `extents=${extents}`];
    await using server = await startNbdkit(folder, ...plugin, "pread=head -c $3 /dev/zero");
    await using client = await NbdClient.connect(server.uri, { metaContexts: ["base:allocation"] });
    expect(await extentsOf(client)).toEqual([
      { offset: 0, length: 512, flags: 1 },
      { offset: 512, length: 512, flags: 2 },
      { offset: 1024, length: 1024, flags: 0 },
      { offset: 2048, length: MiB - 2048, flags: 3 },
    ]);
  });
});
