import { mkdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type ConnectOptions, listExports, NbdClient, type StatusExtent } from "../../src/nbd/index.js";
import { type Folder, makeAuthority, makeFolder, pattern, uriOf } from "../nbd/servers.js";
import { collect } from "../support/collect.js";
import { freshPaths } from "../support/fresh.js";
import { expectRead, mapOf, theirMap } from "../support/maps.js";
import { nbdpull } from "../support/nbdpull.js";
import {
  describeWithNewerSuite,
  newer,
  outputOfNewer,
  startNewerNbdkit,
  startNewerQemu,
} from "../support/newer-suite.js";
import { describeWith, findTool } from "../support/tools.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;

const ALLOCATION = "base:allocation";
const DIRTY = "qemu:dirty-bitmap:b0";

let folder: Folder;
const fresh = freshPaths();
const at = (name: string): string => join(folder.path, name);

async function image(name: string, size: number | string, ...commands: readonly string[]): Promise<string> {
  await outputOfNewer("qemu-img", "create", "-q", "-f", "qcow2", at(name), String(size));
  if (commands.length > 0) await io(at(name), ...commands);
  return at(name);
}

async function io(path: string, ...commands: readonly string[]): Promise<string> {
  return await outputOfNewer(
    "qemu-io",
    "-f",
    "qcow2",
    ...commands.flatMap((command) => ["-c", command]),
    path,
  );
}

describeWithNewerSuite("newer servers and clients", () => {
  beforeAll(async () => {
    folder = await makeFolder();
  });
  afterAll(async () => {
    await folder[Symbol.asyncDispose]();
  });

  describe("qemu-nbd 10", () => {
    const connectExtended = async (uri: string, options: ConnectOptions = {}): Promise<NbdClient> => {
      const client = await NbdClient.connect(uri, options);
      expect(client.export.protocol).toBe("extended");
      return client;
    };

    it("negotiates extended headers, and every byte arrives", async () => {
      const size = 36 * MiB + 512;
      await writeFile(at("reads.raw"), pattern(0, 20 * MiB));
      await truncate(at("reads.raw"), size);
      await using server = await startNewerQemu(folder, "-r", "-f", "raw", "-x", "näme", at("reads.raw"));
      const uri = uriOf(server.socket, "näme");
      await using client = await connectExtended(uri, { optionalContexts: [ALLOCATION], listContexts: true });
      expect(client.export).toMatchObject({
        name: "näme",
        size,
        readOnly: true,
        canDf: true,
        canMultiConn: true,
        contexts: [ALLOCATION],
        availableContexts: [ALLOCATION],
        blockSize: { minimum: 1, maximum: 32 * MiB },
      });
      await expectRead(client, 0, 20 * MiB);
      await expectRead(client, 4 * MiB - 77, 13 * MiB + 154);
      await expectRead(client, 12_345, 1);
      const whole = Buffer.alloc(size, 0xee);
      await client.read(0, whole);
      expect(whole.equals(await readFile(at("reads.raw")))).toBe(true);
      expect(await listExports(uri)).toEqual([{ name: "näme" }]);
    });

    it("keeps many reads over several connections apart", async () => {
      await writeFile(at("multi.raw"), pattern(0, 8 * MiB));
      await using server = await startNewerQemu(folder, "-r", "-f", "raw", at("multi.raw"));
      await using client = await connectExtended(server.uri, { connections: 4, metaContexts: [ALLOCATION] });
      await expect.poll(() => client.connections).toBe(4);
      const reads = Array.from({ length: 128 }, (_, i) => expectRead(client, i * 65_536, 65_536));
      await Promise.all([...reads, collect(client.blockStatus())]);
    });

    it("maps a disk of terabytes as nbdinfo does, in few requests", async () => {
      const size = 5 * TiB + 3 * 512;
      const disk = await image(
        "huge.qcow2",
        size,
        "write -q -P 1 0 1M",
        `write -q -P 2 ${4 * GiB - 65_536} 128k`,
      );
      await outputOfNewer("qemu-img", "bitmap", "--add", "-g", "16M", disk, "b0");
      await io(
        disk,
        `write -q -P 3 ${4 * GiB - 512} 1k`,
        `write -q -z ${64 * GiB - MiB} 2M`,
        `discard -q ${TiB} 1G`,
        `write -q -P 4 ${3 * TiB + 65_536} 64k`,
        `write -q -P 5 ${size - 512} 512`,
      );
      await using server = await startNewerQemu(folder, "-r", "-f", "qcow2", "-B", "b0", "-A", disk);
      const depth = "qemu:allocation-depth";
      await using client = await connectExtended(server.uri, { metaContexts: [ALLOCATION, DIRTY, depth] });
      for (const context of client.export.contexts) {
        expect(await mapOf(client, context), context).toEqual(await theirMap(server.uri, context));
      }
      const dirty = (await mapOf(client, DIRTY)).filter(({ type }) => type === 1);
      expect(dirty.map(({ offset }) => offset)).toEqual([
        4 * GiB - 16 * MiB,
        64 * GiB - 16 * MiB,
        TiB,
        3 * TiB,
        5 * TiB,
      ]);
      await using again = await connectExtended(server.uri, { metaContexts: [DIRTY] });
      await mapOf(again, DIRTY);
      // With 32-bit lengths, extents are at most about 4 GiB long: more than 1200 requests.
      expect(again.requests).toBeLessThan(200);

      const target = Buffer.alloc(1536);
      await client.read(4 * GiB - 768, target);
      expect(target).toEqual(
        Buffer.concat([Buffer.alloc(256, 2), Buffer.alloc(1024, 3), Buffer.alloc(256, 2)]),
      );
      await client.read(size - 1536, target);
      expect(target).toEqual(Buffer.concat([Buffer.alloc(1024), Buffer.alloc(512, 5)]));
    });

    it("reports an extent beyond 4 GiB in one reply", async () => {
      const disk = await image("empty.qcow2", 40 * GiB);
      await using server = await startNewerQemu(folder, "-r", "-f", "qcow2", disk);
      await using client = await connectExtended(server.uri, { metaContexts: [ALLOCATION] });
      const batches = await collect(client.blockStatus({ offset: 5, length: 39 * GiB }));
      // The first request is a short one.
      const first = 64 * 1024 * 1024;
      const expected: StatusExtent[][] = [
        [{ offset: 5, length: first, flags: 3 }],
        [{ offset: 5 + first, length: 39 * GiB - first, flags: 3 }],
      ];
      expect(batches.map(({ contexts }) => contexts.get(ALLOCATION))).toEqual(expected);
      expect(client.requests).toBe(2);
    });

    it("gives a map in pieces, which the client joins", async () => {
      const disk = await image("pieces.qcow2", "256M");
      await outputOfNewer("qemu-img", "bitmap", "--add", "-g", "512", disk, "b0");
      await io(disk, ...Array.from({ length: 300 }, (_, i) => `write -q -z ${i * 851_968 + 1024} 512`));
      await using server = await startNewerQemu(folder, "-r", "-f", "qcow2", "-B", "b0", disk);
      await using client = await connectExtended(server.uri, { metaContexts: [DIRTY] });
      const theirs = await theirMap(server.uri, DIRTY);
      expect(theirs.filter(({ type }) => type === 1)).toHaveLength(300);
      expect(await mapOf(client, DIRTY)).toEqual(theirs);
      expect(await mapOf(client, DIRTY, true)).toEqual(theirs);
    });

    it("writes, and zeroes more than 4 GiB with one request", async () => {
      const disk = await image(
        "writable.qcow2",
        12 * GiB,
        `write -q -P 9 ${6 * GiB} 1M`,
        "write -q -P 9 0 1M",
      );
      {
        await using server = await startNewerQemu(folder, "-f", "qcow2", "--discard=unmap", disk);
        await using client = await connectExtended(server.uri, { metaContexts: [ALLOCATION] });
        const before = client.requests;
        await client.writeZeroes(0, 12 * GiB);
        expect(client.requests - before).toBe(1);
        expect((await mapOf(client, ALLOCATION)).every(({ type }) => (type & 2) !== 0)).toBe(true);

        await client.write(5 * GiB - MiB, Buffer.alloc(5 * MiB, 0x5a), { fua: true });
        await client.writeZeroes(5 * GiB, MiB, { noHole: true, fua: true });
        await client.trim(6 * GiB, 6 * GiB);
        await client.cache(5 * GiB, 64 * KiB);
        await client.flush();
        expect(await mapOf(client, ALLOCATION)).toEqual(await theirMap(server.uri, ALLOCATION));
      }
      await outputOfNewer("qemu-img", "check", "-q", disk);
      const reads = [
        `read -P 0 0 1M`,
        `read -P 0 ${4 * GiB - MiB} 2M`,
        `read -P 0x5a ${5 * GiB - MiB} 1M`,
        `read -P 0 ${5 * GiB} 1M`,
        `read -P 0x5a ${5 * GiB + MiB} 3M`,
        `read -P 0 ${5 * GiB + 4 * MiB} 1M`,
        `read -P 0 ${6 * GiB} 1M`,
      ];
      expect(await io(disk, ...reads)).not.toContain("failed");
    });

    it("refuses what it can't do, and the connection survives", async () => {
      const disk = await image("fast.qcow2", MiB);
      await using server = await startNewerQemu(folder, "-f", "qcow2", disk);
      await using client = await connectExtended(server.uri);
      await client.writeZeroes(0, MiB, { fastZero: true });
      await expect(client.write(MiB - 512, Buffer.alloc(1024))).rejects.toMatchObject({
        code: "NBD_OUT_OF_RANGE",
      });
      await expect(collect(client.blockStatus())).rejects.toMatchObject({ code: "NBD_NOT_OFFERED" });
      await client.read(0, Buffer.alloc(MiB));
    });

    it("reports a read error of the medium, and the connection survives", async () => {
      await writeFile(at("bad.raw"), pattern(0, 4 * MiB));
      await writeFile(at("bad.rules"), '[inject-error]\nevent = "read_aio"\nerrno = "5"\nsector = "2048"\n');
      const file = `file.driver=blkdebug,file.config=${at("bad.rules")},file.image.driver=file,file.image.filename=${at("bad.raw")}`;
      await using server = await startNewerQemu(folder, "-r", "--image-opts", `driver=raw,${file}`);
      await using client = await connectExtended(server.uri);
      await expect(client.read(0, Buffer.alloc(2 * MiB))).rejects.toMatchObject({
        code: "NBD_REQUEST_FAILED",
        command: "read",
        errno: "EIO",
      });
      await expectRead(client, 2 * MiB, MiB);
      expect(client.connections).toBe(1);
    });

    it("gives nbdpull an increment that qemu-img finds identical to the disk", async () => {
      const disk = await image("guest.qcow2", 9 * GiB, "write -q -P 1 0 4M", `write -q -P 1 ${8 * GiB} 1M`);
      await outputOfNewer("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", disk, at("full.qcow2"));
      await outputOfNewer("qemu-img", "bitmap", "--add", "-g", "4k", disk, "b0");
      await io(disk, "write -q -P 2 4k 4k", "write -q -z 1M 12k", `write -q -P 3 ${8 * GiB - 4096} 8k`);
      await using server = await startNewerQemu(folder, "-r", "-f", "qcow2", "-B", "b0", disk);
      const inc = fresh("inc.qcow2");
      const ran = await nbdpull(
        "pull",
        server.uri,
        inc,
        "--bitmap",
        "b0",
        "--backing",
        at("full.qcow2"),
        "--json",
      );
      expect(ran.stderr).toBe("");
      expect(ran.json()).toMatchObject({ mode: "incremental", virtualSize: 9 * GiB, dirtyBytes: 24 * KiB });
      await outputOfNewer("qemu-img", "compare", "-f", "qcow2", "-F", "raw", inc, server.uri);
      await outputOfNewer("qemu-img", "check", "-q", inc);
    });

    describeWith(["certtool", "psktool"], "over TLS", () => {
      it("works with certificates on both sides", async () => {
        const { path } = await makeAuthority({ path: fresh("") }, "ours");
        await writeFile(at("x509.raw"), pattern(0, 3 * MiB));
        const creds = `--object=tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir=${path}`;
        await using server = await startNewerQemu(
          folder,
          creds,
          "--tls-creds=tls0",
          "-r",
          "-f",
          "raw",
          at("x509.raw"),
        );
        const uri = uriOf(server.socket, "", `tls-certificates=${path}&tls-hostname=localhost`, "nbds");
        await using client = await connectExtended(uri, { metaContexts: [ALLOCATION] });
        expect(client.export.tls).toBe(true);
        await expectRead(client, 0, 3 * MiB);
        expect(await mapOf(client, ALLOCATION)).toEqual([{ offset: 0, length: 3 * MiB, type: 0 }]);
      });

      it("works with a pre-shared key", async () => {
        await mkdir(at("psk"), { recursive: true });
        const keys = at("psk/keys.psk");
        await execa(findTool("psktool") ?? "psktool", ["-u", "alice", "-p", keys]);
        await writeFile(at("psk.raw"), pattern(0, 3 * MiB));
        const creds = `--object=tls-creds-psk,id=tls0,endpoint=server,dir=${at("psk")}`;
        await using server = await startNewerQemu(
          folder,
          creds,
          "--tls-creds=tls0",
          "-r",
          "-f",
          "raw",
          at("psk.raw"),
        );
        await using client = await connectExtended(
          `nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${keys}`,
        );
        await expectRead(client, 0, 3 * MiB);
      });
    });
  });

  describe("nbdkit 1.42", () => {
    it("is read and mapped like by nbdinfo, with structured replies", async () => {
      const size = 6 * GiB + 700;
      await using server = await startNewerNbdkit(folder, "memory", String(size));
      await using client = await NbdClient.connect(server.uri, { metaContexts: [ALLOCATION] });
      expect(client.export).toMatchObject({ protocol: "structured", size, canMultiConn: true });
      await client.write(5 * GiB, pattern(5 * GiB, MiB));
      await client.writeZeroes(0, 5 * GiB);
      await client.flush();
      await expectRead(client, 5 * GiB + 1, MiB - 1);
      expect(await mapOf(client, ALLOCATION)).toEqual(await theirMap(server.uri, ALLOCATION));
    });

    it("has its block sizes respected", async () => {
      await writeFile(at("policy.raw"), pattern(0, 3 * MiB));
      const filter = newer("nbdkit").replace(
        "bin/nbdkit",
        "lib/nbdkit/filters/nbdkit-blocksize-policy-filter.so",
      );
      await using server = await startNewerNbdkit(
        folder,
        "file",
        at("policy.raw"),
        `--filter=${filter}`,
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64k",
        "blocksize-error-policy=error",
      );
      await using client = await NbdClient.connect(server.uri);
      expect(client.export.blockSize).toEqual({ minimum: 4096, preferred: 4096, maximum: 65_536 });
      await expectRead(client, 0, 3 * MiB);
      await expectRead(client, 4095, 200_000);
    });
  });
});
