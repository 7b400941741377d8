/**
 * What real servers once sent, with every kind of fault added. Renew the recordings with
 *
 *     NBD_RECORD=1 npx vitest run test/nbd/recorded-conversations.test.ts
 */

import { readFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { type ExportInfo, NbdClient, NbdError, type StatusBatch } from "../../src/nbd/index.js";
import { collect } from "../support/collect.js";
import { anyFaults, type Fault, FaultyLine } from "../support/faulty-line.js";
import { MockServer } from "../support/mock-server.js";
import { startNewerQemu } from "../support/newer-suite.js";
import { qemuImg, qemuIo } from "../support/qemu-nbd.js";
import {
  formatRecording,
  handshakeLength,
  parseRecording,
  play,
  record,
  type Stretch,
} from "../support/recording.js";
import { findTool } from "../support/tools.js";
import { type Folder, listensOn, makeFolder, pattern, startNbdkit, startQemu, uriOf } from "./servers.js";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "recordings");
const SIZE = 1024 * 1024;
const DIRTY = "qemu:dirty-bitmap:b0";
/** Each needs only one request to any server, and avoids the zeroes of {@link diskWithBitmap}. */
const READS: readonly Stretch[] = [
  [0, 512],
  [4096, 1536],
  [65_536 - 512, 1024],
  [SIZE - 512, 512],
];

interface Conversation {
  readonly title: string;
  readonly protocol: ExportInfo["protocol"];
  readonly contexts: readonly string[];
  /** Starts the real server for a new recording; returns where it listens. */
  readonly serve: (folder: Folder) => Promise<AsyncDisposable & { readonly at: string | number }>;
}

/** A qcow2 image of the pattern, with a bitmap and a stretch of zeroes. */
async function diskWithBitmap(folder: Folder): Promise<string> {
  const raw = await rawDisk(folder);
  const path = join(folder.path, "disk.qcow2");
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, path);
  await qemuImg("bitmap", "--add", path, "b0");
  await qemuIo(path, "qcow2", "write -z 512k 64k");
  return path;
}

async function rawDisk(folder: Folder): Promise<string> {
  const path = join(folder.path, "disk.raw");
  await writeFile(path, pattern(0, SIZE));
  return path;
}

const BITMAP = ["-r", "-f", "qcow2", "-x", "disk", "-B", "b0"];

const CONVERSATIONS: Readonly<Record<string, Conversation>> = {
  "qemu-nbd-7.2": {
    title: "qemu-nbd with structured replies and a bitmap",
    protocol: "structured",
    contexts: ["base:allocation", DIRTY],
    serve: async (folder) => {
      const server = await startQemu(folder, ...BITMAP, await diskWithBitmap(folder));
      return { ...server, at: server.socket };
    },
  },
  "qemu-nbd-10": {
    title: "qemu-nbd with extended headers and a bitmap",
    protocol: "extended",
    contexts: ["base:allocation", DIRTY],
    serve: async (folder) => {
      const server = await startNewerQemu(folder, ...BITMAP, await diskWithBitmap(folder));
      return { ...server, at: server.socket };
    },
  },
  "nbdkit-1.32": {
    title: "nbdkit with structured replies",
    protocol: "structured",
    contexts: ["base:allocation"],
    serve: async (folder) => {
      const server = await startNbdkit(folder, "-r", "file", await rawDisk(folder));
      return { ...server, at: server.socket };
    },
  },
  "nbdkit-export-name": {
    title: "nbdkit without options but EXPORT_NAME",
    protocol: "simple",
    contexts: [],
    serve: async (folder) => {
      const server = await startNbdkit(folder, "--mask-handshake=0", "-r", "file", await rawDisk(folder));
      return { ...server, at: server.socket };
    },
  },
  "nbd-server-3.24": {
    title: "nbd-server with simple replies",
    protocol: "simple",
    contexts: [],
    serve: async (folder) => {
      const port = await freePort();
      const config = join(folder.path, "config");
      await writeFile(
        config,
        `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\n[disk]\nexportname = ${await rawDisk(folder)}\n`,
      );
      const pidFile = join(folder.path, "pid");
      await execa(findTool("nbd-server") ?? "nbd-server", ["-C", config, "-p", pidFile]);
      await expect.poll(() => listensOn(port)).toBe(true);
      const dispose = async () => {
        process.kill(Number(await readFile(pidFile, "utf8")), "SIGTERM");
      };
      return { at: port, [Symbol.asyncDispose]: dispose };
    },
  },
};

interface Learned {
  readonly info: ExportInfo;
  readonly batches: readonly StatusBatch[];
  /** The bytes or the error of each read. */
  readonly reads: readonly (Buffer | NbdError)[];
}

/** Sequential, so that the client always sends the same bytes. */
async function talk(socketPath: string): Promise<Learned> {
  await using client = await NbdClient.connect(uriOf(socketPath, "disk"), {
    optionalContexts: ["base:allocation", DIRTY],
    listContexts: true,
    connectTimeoutMs: 2000,
    idleTimeoutMs: 2000,
  });
  const { size, contexts } = client.export;
  const isMapped = contexts.length > 0 && size === SIZE;
  const batches = isMapped ? await collect(client.blockStatus()).catch(failure) : [];
  const reads: (Buffer | NbdError)[] = [];
  for (const [offset, length] of READS) {
    const target = Buffer.alloc(length, 0xee);
    reads.push(await client.read(offset, target).then(() => target, failure));
  }
  return { info: client.export, batches: batches instanceof NbdError ? [] : batches, reads };
}

function failure(error: unknown): NbdError {
  if (error instanceof NbdError) return error;
  throw error;
}

const recordingOf = (name: string): string => join(FOLDER, `${name}.txt`);

if (process.env["NBD_RECORD"] === "1") {
  it.each(Object.entries(CONVERSATIONS))("%s", async (name, { serve }) => {
    await using folder = await makeFolder();
    await using server = await serve(folder);
    const turns = await record(folder.path, server.at, async (path) => {
      await talk(path);
    });
    await writeFile(recordingOf(name), formatRecording(turns));
  });
} else {
  describe.each(Object.entries(CONVERSATIONS))("%s", (name, { title, protocol, contexts }) => {
    const turns = parseRecording(readFileSync(recordingOf(name), "utf8"));
    const handshake = handshakeLength(turns);
    const disk = pattern(0, SIZE);

    /** Plays the recording to the client. */
    async function replay(
      faults: readonly Fault[],
    ): Promise<{ learned: Learned | NbdError; heard: Buffer | undefined; length: number }> {
      let heard: Buffer | undefined;
      let length = 0;
      await using mock = await MockServer.start(async (peer) => {
        // A client that waits for what is lost would wait for long.
        if (faults.length > 0) peer.socket.setTimeout(40, () => peer.socket.destroy());
        const line = new FaultyLine(peer, faults);
        try {
          heard = await play(turns, READS, peer, line);
        } finally {
          length = line.position;
        }
      });
      const learned = await talk(mock.socketPath).catch(failure);
      return { learned, heard, length };
    }

    it(`${title}: the client says what it said to the real one, and learns the same`, async () => {
      const { learned, heard } = await replay([]);
      if (learned instanceof NbdError) throw learned;
      expect(learned.info).toMatchObject({ size: SIZE, protocol, contexts });
      expect(learned.reads).toEqual(READS.map(([offset, length]) => disk.subarray(offset, offset + length)));
      const dirty = learned.batches.flatMap((batch) => batch.contexts.get(DIRTY) ?? []);
      expect(dirty.filter(({ flags }) => flags === 1)).toEqual(
        contexts.includes(DIRTY) ? [{ offset: 512 * 1024, length: 65_536, flags: 1 }] : [],
      );
      const said = Buffer.concat(turns.map(({ client }) => client));
      expect(heard?.equals(said), "the client says something else: record anew, see above").toBe(true);
    });

    it(`${title}: faults in it never lead to a crash, a hang or a wrong byte`, async () => {
      const { length } = await replay([]);
      expect(length).toBeGreaterThan(handshake);
      await fc.assert(
        fc.asyncProperty(anyFaults({ length, handshake }), async (faults) => {
          const before = Date.now();
          const { learned } = await replay(faults);
          expect(Date.now() - before, "a hang").toBeLessThan(30_000);
          if (learned instanceof NbdError) return;
          // A fault in the handshake can describe another valid export; a lost or added byte shifts the
          // payload.
          const mayLie = faults.some(
            ({ at, kind }) => at < handshake || kind === "insert" || kind === "delete",
          );
          for (const [index, [offset, size]] of READS.entries()) {
            const bytes = learned.reads[index];
            if (mayLie || bytes === undefined || bytes instanceof NbdError) continue;
            expect(bytes.equals(disk.subarray(offset, offset + size)), "wrong bytes").toBe(true);
          }
          let position = 0;
          for (const batch of learned.batches) {
            expect(batch.offset).toBe(position);
            position += batch.length;
            for (const extents of batch.contexts.values()) {
              expect(extents.reduce((sum, extent) => sum + extent.length, 0)).toBe(batch.length);
            }
          }
        }),
        { numRuns: 80 },
      );
    });
  });
}
