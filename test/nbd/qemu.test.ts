import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { listExports, NbdClient } from "../../src/nbd/index.js";
import { ALLOCATION } from "../../src/nbd/wire/constants.js";
import { collect } from "../support/collect.js";
import { qemuImg, qemuIo } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";
import { type Folder, listensOn, makeFolder, pattern, startQemu, startServer, uriOf } from "./servers.js";

const MiB = 1024 * 1024;

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "with qemu-nbd", () => {
  let folder: Folder;
  beforeAll(async () => {
    folder = await makeFolder();
  });
  afterAll(async () => {
    await folder[Symbol.asyncDispose]();
  });

  async function rawImage(name: string, size: number): Promise<string> {
    const path = join(folder.path, name);
    await writeFile(path, pattern(0, size));
    return path;
  }

  async function expectRead(client: NbdClient, offset: number, length: number): Promise<void> {
    const target = Buffer.alloc(length, 0xee);
    await client.read(offset, target);
    expect(target.equals(pattern(offset, length)), `bytes from ${offset}, length ${length}`).toBe(true);
  }

  it("reads any range, even unaligned or larger than one request", async () => {
    const image = await rawImage("any.raw", 70 * MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", image);
    await using client = await NbdClient.connect(server.uri);
    expect(client.export).toMatchObject({
      size: 70 * MiB,
      readOnly: true,
      protocol: expect.stringMatching(/structured|extended/),
      tls: false,
      contexts: [],
    });
    await expectRead(client, 0, 70 * MiB);
    await expectRead(client, 12_345, 1);
    await expectRead(client, 511, 33 * MiB + 77);
    await expectRead(client, 70 * MiB - 1, 1);
    await client.read(70 * MiB, Buffer.alloc(0));
  });

  it("tells dirty from clean and data from zeroes, over the whole disk and over unaligned ranges", async () => {
    const image = join(folder.path, "dirty.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "64M");
    await qemuIo(image, "qcow2", "write -P 1 0 1M");
    await qemuImg("bitmap", "--add", "-g", "65536", image, "b0");
    await qemuIo(image, "qcow2", "write -P 2 2M 128k", "write -z 4M 64k");
    await using server = await startQemu(folder, "-r", "-f", "qcow2", "-B", "b0", "-A", image);
    const dirty = "qemu:dirty-bitmap:b0";
    await using client = await NbdClient.connect(server.uri, {
      metaContexts: [dirty],
      optionalContexts: ["base:allocation", "qemu:dirty-bitmap:no-such"],
      listContexts: true,
    });
    expect(client.export.contexts).toEqual(["base:allocation", dirty]);
    expect(client.export.availableContexts).toEqual(["base:allocation", "qemu:allocation-depth", dirty]);

    const [batch, ...more] = await collect(client.blockStatus());
    expect(more).toEqual([]);
    expect(batch).toMatchObject({ offset: 0, length: 64 * MiB });
    expect(batch?.contexts.get(dirty)).toEqual([
      { offset: 0, length: 2 * MiB, flags: 0 },
      { offset: 2 * MiB, length: 128 * 1024, flags: 1 },
      { offset: 2 * MiB + 128 * 1024, length: 2 * MiB - 128 * 1024, flags: 0 },
      { offset: 4 * MiB, length: 64 * 1024, flags: 1 },
      { offset: 4 * MiB + 64 * 1024, length: 60 * MiB - 64 * 1024, flags: 0 },
    ]);
    const allocation = batch?.contexts.get("base:allocation") ?? [];
    expect(allocation.filter(({ flags }) => (flags & ALLOCATION.ZERO) === 0)).toEqual([
      { offset: 0, length: MiB, flags: 0 },
      { offset: 2 * MiB, length: 128 * 1024, flags: 0 },
    ]);

    const [ragged] = await collect(client.blockStatus({ offset: 2 * MiB - 7, length: 14 }));
    expect(ragged).toMatchObject({ offset: 2 * MiB - 7, length: 14 });
    expect(ragged?.contexts.get(dirty)).toEqual([
      { offset: 2 * MiB - 7, length: 7, flags: 0 },
      { offset: 2 * MiB, length: 7, flags: 1 },
    ]);
    expect(await collect(client.blockStatus({ offset: 64 * MiB }))).toEqual([]);
  });

  it("joins a map that the server can only give in pieces", async () => {
    // A dirty block in every other 64 KiB of a large disk gives more extents than fit one reply.
    const image = join(folder.path, "pieces.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "600M");
    await qemuImg("bitmap", "--add", "-g", "512", image, "fine");
    const writes = Array.from({ length: 4 }, (_, index) => `write -q -z ${index * 150}M 512`);
    await qemuIo(image, "qcow2", ...writes);
    await using server = await startQemu(folder, "-r", "-f", "qcow2", "-B", "fine", image);
    await using client = await NbdClient.connect(server.uri, { metaContexts: ["qemu:dirty-bitmap:fine"] });
    const batches = await collect(client.blockStatus({ onlyFirst: true }));
    expect(batches.length).toBeGreaterThan(4);
    const dirty = batches
      .flatMap(({ contexts }) => [...(contexts.get("qemu:dirty-bitmap:fine") ?? [])])
      .filter(({ flags }) => flags === 1);
    expect(dirty.map(({ offset }) => offset)).toEqual([0, 150 * MiB, 300 * MiB, 450 * MiB]);
  });

  it("fails if a mandatory context is missing, and names it", async () => {
    const image = await rawImage("plain.raw", MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", image);
    const missing = "qemu:dirty-bitmap:nope";
    await expect(
      NbdClient.connect(server.uri, { metaContexts: ["base:allocation", missing] }),
    ).rejects.toMatchObject({
      name: "MetaContextError",
      code: "NBD_META_CONTEXT_MISSING",
      missing: [missing],
    });
  });

  it("reports that an export doesn't exist, in the server's words", async () => {
    const image = await rawImage("named.raw", MiB);
    await using server = await startQemu(
      folder,
      "-r",
      "-f",
      "raw",
      "-x",
      "näme",
      "-D",
      "a description",
      image,
    );
    await expect(NbdClient.connect(uriOf(server.socket, "other"))).rejects.toMatchObject({
      name: "OptionError",
      code: "NBD_EXPORT_UNKNOWN",
      serverText: expect.stringContaining("other"),
    });
    expect(await listExports(server.uri)).toEqual([{ name: "näme", description: "a description" }]);
    await using client = await NbdClient.connect(uriOf(server.socket, "näme"));
    expect(client.export).toMatchObject({ name: "näme", description: "a description" });
  });

  it("spreads reads over several connections", async () => {
    const image = await rawImage("multi.raw", 8 * MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", image);
    await using client = await NbdClient.connect(server.uri, { connections: 4 });
    await expectRead(client, 0, 4096);
    await expect.poll(() => client.connections).toBe(4);
    await Promise.all(Array.from({ length: 128 }, (_, index) => expectRead(client, index * 65_536, 65_536)));
  });

  it("continues with fewer connections if the server allows no more", async () => {
    const image = await rawImage("lonely.raw", MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", "--shared=2", image);
    const failed: unknown[] = [];
    await using client = await NbdClient.connect(server.uri, {
      connections: 3,
      connectTimeoutMs: 1500,
      onEvent: (event) => event.type === "not-opened" && failed.push(event.error),
    });
    await expect.poll(() => failed).toHaveLength(1);
    expect(failed[0]).toMatchObject({ code: "NBD_CONNECT_TIMEOUT" });
    expect(client.connections).toBe(2);
    await expectRead(client, 0, MiB);
  });

  it("is not delayed by connections that a server for one client never greets", async () => {
    const image = await rawImage("single.raw", MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", "--shared=1", image);
    const before = Date.now();
    const client = await NbdClient.connect(server.uri, { connections: 4, connectTimeoutMs: 30_000 });
    await expectRead(client, 0, MiB);
    expect(client.connections).toBe(1);
    await client.close();
    expect(Date.now() - before).toBeLessThan(25_000);
  });

  it("reports a read error of the medium, and continues", async () => {
    const image = await rawImage("bad.raw", 4 * MiB);
    const rules = join(folder.path, "blkdebug.conf");
    await writeFile(rules, '[inject-error]\nevent = "read_aio"\nerrno = "5"\nsector = "2048"\n');
    const options = `driver=raw,file.driver=blkdebug,file.config=${rules},file.image.driver=file,file.image.filename=${image}`;
    await using server = await startQemu(folder, "-r", "--image-opts", options);
    await using client = await NbdClient.connect(server.uri);
    expect(client.export.canDf).toBe(true);
    await expect(client.read(0, Buffer.alloc(2 * MiB))).rejects.toMatchObject({
      name: "RequestError",
      code: "NBD_REQUEST_FAILED",
      command: "read",
      errno: "EIO",
      offset: 0,
      length: 2 * MiB,
    });
    await expectRead(client, 2 * MiB, MiB);
    expect(client.connections).toBe(1);
  });

  it("fails all pending requests when the server dies", async () => {
    const image = await rawImage("dying.raw", 64 * MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", image);
    await using client = await NbdClient.connect(server.uri);
    const reads = Array.from({ length: 16 }, () => client.read(0, Buffer.alloc(16 * MiB)));
    const outcomes = Promise.allSettled(reads);
    await server.kill();
    const failures = (await outcomes).filter(({ status }) => status === "rejected");
    expect(failures.length).toBeGreaterThan(0);
    for (const failure of failures) expect(failure).toMatchObject({ reason: { name: "ConnectionError" } });
  });

  it("writes, zeroes, trims, caches and flushes", async () => {
    const image = join(folder.path, "writable.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "32M");
    await using server = await startQemu(folder, "-f", "qcow2", image, "--discard=unmap");
    await using client = await NbdClient.connect(server.uri);
    await client.write(MiB, pattern(MiB, 5 * MiB), { fua: true });
    await expectRead(client, MiB, 5 * MiB);
    await client.writeZeroes(2 * MiB, MiB, { noHole: true });
    await client.trim(8 * MiB, MiB, { fua: true });
    await client.cache(0, 32 * MiB);
    await client.flush();
    const target = Buffer.alloc(MiB, 0xee);
    await client.read(2 * MiB, target);
    expect(target.equals(Buffer.alloc(MiB))).toBe(true);
    await expectRead(client, 3 * MiB, MiB);
    await expect(client.write(32 * MiB - 512, Buffer.alloc(1024))).rejects.toMatchObject({
      code: "NBD_OUT_OF_RANGE",
      command: "write",
    });
    await client.close();
    await expect(client.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "NBD_CLOSED" });
  });

  it("doesn't even try to write to a read-only export", async () => {
    const image = await rawImage("ro.raw", MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", image);
    await using client = await NbdClient.connect(server.uri);
    const before = client.requests;
    await expect(client.write(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_READ_ONLY" });
    await expect(client.trim(0, 512)).rejects.toMatchObject({ code: "NBD_NOT_OFFERED" });
    expect(client.requests).toBe(before);
  });

  it("times out waiting for the greeting of a server that is busy with another client", async () => {
    const image = await rawImage("busy.raw", MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", "--shared=1", image);
    await using _first = await NbdClient.connect(server.uri);
    await expect(NbdClient.connect(server.uri, { connectTimeoutMs: 200 })).rejects.toMatchObject({
      code: "NBD_CONNECT_TIMEOUT",
      message: expect.stringMatching(/the greeting.*--shared/),
    });
  });

  it("leaves a buffer alone once its read is aborted", async () => {
    const image = await rawImage("abort.raw", 64 * MiB);
    await using server = await startQemu(folder, "-r", "-f", "raw", image);
    for (const delay of [0, 1, 2, 4, 8]) {
      await using client = await NbdClient.connect(server.uri);
      const controller = new AbortController();
      const target = Buffer.alloc(32 * MiB);
      const other = client.read(0, Buffer.alloc(MiB));
      const reading = client.read(MiB, target, { signal: controller.signal });
      const outcome = Promise.allSettled([other, reading]);
      setTimeout(() => controller.abort(), delay);
      const [, read] = await outcome;
      if (read.status === "fulfilled") continue;
      expect(read.reason).toMatchObject({ code: "NBD_ABORTED" });
      target.fill(0xaa);
      await new Promise((resolve) => setTimeout(resolve, 30));
      expect(target.equals(Buffer.alloc(32 * MiB, 0xaa))).toBe(true);
    }
  });
});

describeWith(["qemu-storage-daemon"], "with qemu-storage-daemon", () => {
  it("lists several exports, and fails a read after the server is killed", async () => {
    await using folder = await makeFolder();
    const image = join(folder.path, "disk.raw");
    await writeFile(image, pattern(0, MiB));
    const socket = join(folder.path, "nbd.sock");
    const args = [
      ["--blockdev", `driver=file,node-name=disk,filename=${image},read-only=on`],
      ["--nbd-server", `addr.type=unix,addr.path=${socket},max-connections=0`],
      ["--export", "type=nbd,id=a,node-name=disk,name=sda"],
      ["--export", "type=nbd,id=b,node-name=disk,name=sdb,description=second"],
    ].flat();
    await using server = await startServer("qemu-storage-daemon", args, () => listensOn(socket));
    expect(await listExports(uriOf(socket))).toEqual([
      { name: "sda" },
      { name: "sdb", description: "second" },
    ]);
    await using client = await NbdClient.connect(uriOf(socket, "sdb"));
    const target = Buffer.alloc(MiB);
    await client.read(0, target);
    expect(target.equals(pattern(0, MiB))).toBe(true);
    await server.kill();
    await expect(client.read(0, target)).rejects.toMatchObject({ name: "ConnectionError" });
  });
});
