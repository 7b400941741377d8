import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { listExports, NbdClient } from "../../src/nbd/index.js";
import { collect } from "../support/collect.js";
import { describeWith } from "../support/tools.js";
import { type Folder, makeFolder, pattern, startNbdkit } from "./servers.js";

const MiB = 1024 * 1024;

describeWith(["nbdkit"], "with nbdkit", () => {
  let folder: Folder;
  let image: string;
  beforeAll(async () => {
    folder = await makeFolder();
    image = join(folder.path, "disk.raw");
    await writeFile(image, pattern(0, 3 * MiB + 700));
  });
  afterAll(async () => {
    await folder[Symbol.asyncDispose]();
  });

  async function expectRead(client: NbdClient, offset: number, length: number): Promise<void> {
    const target = Buffer.alloc(length, 0xee);
    await client.read(offset, target);
    expect(target.equals(pattern(offset, length)), `bytes from ${offset}, length ${length}`).toBe(true);
  }

  it.each([
    ["structured replies", []],
    ["simple replies", ["--no-sr"]],
    ["EXPORT_NAME and 124 zeroes after it", ["--mask-handshake=0"]],
    ["EXPORT_NAME and no zeroes after it", ["--mask-handshake=2"]],
    ["the fixed handshake, but zeroes where they apply", ["--mask-handshake=1"]],
  ])("reads with %s", async (_title, args) => {
    await using server = await startNbdkit(folder, ...args, "-r", "file", image);
    await using client = await NbdClient.connect(server.uri, { optionalContexts: ["base:allocation"] });
    await expectRead(client, 0, 3 * MiB + 700);
    await expectRead(client, 3 * MiB + 1, 699);
    await expectRead(client, 1000, 25);
  });

  it("fails for a mandatory context if there are only simple replies", async () => {
    await using server = await startNbdkit(folder, "--no-sr", "-r", "file", image);
    await expect(NbdClient.connect(server.uri, { metaContexts: ["base:allocation"] })).rejects.toMatchObject({
      code: "NBD_META_CONTEXT_MISSING",
    });
  });

  it.each([
    [4096, 4096, 65_536],
    [512, 4096, 4096],
    [65_536, 65_536, 1024 * 1024],
  ])(
    "follows block sizes of %i, %i, %i, even for unaligned requests",
    async (minimum, preferred, maximum) => {
      const policy = [
        `blocksize-minimum=${minimum}`,
        `blocksize-preferred=${preferred}`,
        `blocksize-maximum=${maximum}`,
        "blocksize-error-policy=error",
      ];
      const size = 2 * MiB;
      const filters = ["--filter=blocksize-policy", "--filter=truncate"];
      await using server = await startNbdkit(
        folder,
        ...["-r", ...filters, "file", image, `truncate=${size}`, ...policy],
      );
      await using client = await NbdClient.connect(server.uri, { metaContexts: ["base:allocation"] });
      expect(client.export.blockSize).toEqual({ minimum, preferred, maximum });
      await expectRead(client, 0, size);
      await expectRead(client, 1, size - 2);
      await expectRead(client, 5000, 1);
      await expectRead(client, minimum - 1, 2);
      const batches = await collect(client.blockStatus({ offset: 5000, length: 10 }));
      expect(batches.map(({ offset, length }) => ({ offset, length }))).toEqual([
        { offset: 5000, length: 10 },
      ]);
    },
  );

  it("reads a partial last block as it is, and passes on the server's answer", async () => {
    // No request for these bytes fits both the block size and the export's size.
    const size = 3 * MiB + 700;
    const policy = (onError: string) => [
      ...["-r", "--filter=blocksize-policy", "file", image],
      ...["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=64k"],
      `blocksize-error-policy=${onError}`,
    ];
    await using lenient = await startNbdkit(folder, ...policy("allow"));
    await using strict = await startNbdkit(folder, ...policy("error"));
    await using one = await NbdClient.connect(lenient.uri);
    await expectRead(one, 0, size);
    await expectRead(one, size - 5000, 4999);
    await using other = await NbdClient.connect(strict.uri);
    await expectRead(other, 1, 3 * MiB - 1);
    await expect(other.read(0, Buffer.alloc(size))).rejects.toMatchObject({
      code: "NBD_REQUEST_FAILED",
      errno: "EINVAL",
      offset: 3 * MiB,
      length: 700,
    });
    await expectRead(other, 0, 3 * MiB);
  });

  it("writes, zeroes and trims only whole blocks", async () => {
    const policy = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=64k"];
    const args = ["--filter=blocksize-policy", "memory", "1M", ...policy, "blocksize-error-policy=error"];
    await using server = await startNbdkit(folder, ...args);
    await using client = await NbdClient.connect(server.uri);
    await client.write(4096, pattern(4096, 200_704));
    await expectRead(client, 5000, 1);
    await client.writeZeroes(0, MiB);
    await client.trim(4096, MiB - 4096);
    const before = client.requests;
    const unaligned = { code: "NBD_UNALIGNED", message: expect.stringContaining("4096") };
    await expect(client.write(512, Buffer.alloc(4096))).rejects.toMatchObject(unaligned);
    await expect(client.write(0, Buffer.alloc(512))).rejects.toMatchObject(unaligned);
    await expect(client.writeZeroes(0, 512)).rejects.toMatchObject(unaligned);
    await expect(client.trim(512, 4096)).rejects.toMatchObject(unaligned);
    expect(client.requests).toBe(before);
  });

  it("fails if zeroing would not be fast, and zeroes anyway without that flag", async () => {
    const filter = ["--filter=nozero", "memory", "1M", "zeromode=emulate", "fastzeromode=slow"];
    await using server = await startNbdkit(folder, ...filter);
    await using client = await NbdClient.connect(server.uri);
    expect(client.export.canFastZero).toBe(true);
    await client.write(0, pattern(0, 65_536));
    await expect(client.writeZeroes(0, 65_536, { fastZero: true })).rejects.toMatchObject({
      code: "NBD_REQUEST_FAILED",
      command: "write zeroes",
      errno: "ENOTSUP",
    });
    await expectRead(client, 0, 65_536);
    await client.writeZeroes(0, 65_536);
    const target = Buffer.alloc(65_536, 0xee);
    await client.read(0, target);
    expect(target.equals(Buffer.alloc(65_536))).toBe(true);
  });

  it("reports the errors of single requests, and continues", async () => {
    const trigger = join(folder.path, "trigger");
    const errors = ["error-pread=EIO", "error-pread-rate=100%", `error-file=${trigger}`];
    await using server = await startNbdkit(folder, "-r", "--filter=error", "file", image, ...errors);
    await using client = await NbdClient.connect(server.uri);
    await expectRead(client, 0, MiB);
    await writeFile(trigger, "");
    await expect(client.read(512, Buffer.alloc(512))).rejects.toMatchObject({
      errno: "EIO",
      offset: 512,
      length: 512,
      command: "read",
    });
    expect(client.connections).toBe(1);
  });

  it("gives up on a server that becomes silent", async () => {
    await using server = await startNbdkit(folder, "-r", "--filter=delay", "file", image, "rdelay=60");
    await using client = await NbdClient.connect(server.uri, { idleTimeoutMs: 200 });
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "NBD_IDLE_TIMEOUT" });
  });

  it("walks over extents of any size, even beyond the request", async () => {
    // Without structured extents, the plugin's whole disk is one extent, however small the request.
    await using server = await startNbdkit(folder, "memory", "1T");
    await using client = await NbdClient.connect(server.uri, { metaContexts: ["base:allocation"] });
    const [batch] = await collect(client.blockStatus({ offset: 4096, length: 4096 }));
    expect(batch?.contexts.get("base:allocation")).toEqual([{ offset: 4096, length: 4096, flags: 3 }]);
    await client.write(5 * MiB, pattern(0, 65_536), {});
    const batches = await collect(client.blockStatus());
    let position = 0;
    for (const { offset, length } of batches) {
      expect(offset).toBe(position);
      position += length;
    }
    expect(position).toBe(2 ** 40);
    const data = batches
      .flatMap(({ contexts }) => [...(contexts.get("base:allocation") ?? [])])
      .filter(({ flags }) => flags === 0);
    expect(data.at(0)?.offset).toBe(5 * MiB);
  });

  it("zeroes and trims ranges beyond 32 bits", async () => {
    await using server = await startNbdkit(folder, "memory", "1T");
    await using client = await NbdClient.connect(server.uri);
    await client.writeZeroes(0, 2 ** 40);
    await client.trim(0, 2 ** 40);
    expect(client.requests).toBeLessThan(600);
  });

  it("lists exports with descriptions", async () => {
    const script = join(folder.path, "list.sh");
    await writeFile(
      script,
      '#!/bin/sh\ncase "$1" in\nlist_exports) echo NAMES; echo eins; echo zwei;;\nget_size) echo 512;;\n*) exit 2;;\nesac\n',
      { mode: 0o755 },
    );
    await using server = await startNbdkit(folder, "sh", script);
    expect((await listExports(server.uri)).map(({ name }) => name)).toEqual(["eins", "zwei"]);
  });
});
