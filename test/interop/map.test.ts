/** `nbdpull map` of disks with so many extents that it prints them while they arrive. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { NbdServer, ServedError } from "../../src/nbd/index.js";
import { nbdpull } from "../support/nbdpull.js";
import { describeWith } from "../support/tools.js";

const GiB = 1024 ** 3;
const BLOCK = 64 * 1024;
const CONTEXT = "qemu:dirty-bitmap:b0";
const PROGRAM = join(dirname(fileURLToPath(import.meta.url)), "../../dist/bin/nbdpull.js");

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-map-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

interface Line {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
  readonly description: string;
}

/** Dirty blocks with one or two clean blocks between them. */
function* stretches(
  from: number,
  size: number,
  blockSize = BLOCK,
): Generator<{ length: number; flags: number }> {
  for (let block = from / blockSize; block < size / blockSize; block += 1) {
    yield { length: blockSize, flags: block % 5 === 0 || block % 5 === 2 ? 1 : 0 };
  }
}

function expected(size: number): Line[] {
  const lines: Line[] = [];
  let offset = 0;
  for (const { length, flags } of stretches(0, size)) {
    const last = lines.at(-1);
    if (last?.type === flags) lines[lines.length - 1] = { ...last, length: last.length + length };
    else lines.push({ offset, length, type: flags, description: flags === 1 ? "dirty" : "clean" });
    offset += length;
  }
  return lines;
}

interface Served {
  readonly blockSize?: number;
  /** Reading the bitmap fails from here on. */
  readonly failsAt?: number;
  readonly asked?: (offset: number) => void;
}

async function serve(size: number, options: Served = {}): Promise<NbdServer> {
  const { blockSize, failsAt = Number.POSITIVE_INFINITY, asked } = options;
  const describeFrom = (offset: number) => {
    asked?.(offset);
    if (offset >= failsAt) throw new ServedError("EIO", "the bitmap is damaged");
    return stretches(offset, size, blockSize);
  };
  return await NbdServer.listen({
    exports: () => ({
      size,
      read: (_offset, length) => new Uint8Array(length),
      contexts: new Map([[CONTEXT, describeFrom]]),
    }),
    address: { path: join(folder, "nbd.sock") },
  });
}

describe("a map printed while it arrives", () => {
  it("is exactly what JSON.stringify would print, in a pipe and in a file", async () => {
    const size = 6 * GiB;
    await using server = await serve(size);
    const document = `${JSON.stringify(expected(size), null, 2)}\n`;
    const args = ["map", server.uri(""), "--bitmap", "b0", "--json"];
    const piped = await execa(process.execPath, [PROGRAM, ...args], { stripFinalNewline: false });
    expect(piped.stdout === document).toBe(true);
    const file = await open(join(folder, "map.json"), "w");
    await once(
      spawn(process.execPath, [PROGRAM, ...args], { stdio: ["ignore", file.fd, "inherit"] }),
      "close",
    );
    await file.close();
    expect((await readFile(join(folder, "map.json"), "utf8")) === document).toBe(true);
  });

  it("ends with totals and a picture if it is text", async () => {
    const size = 6 * GiB;
    await using server = await serve(size);
    const ran = await nbdpull("map", server.uri(""), "--bitmap", "b0");
    const lines = expected(size);
    const text = lines.map(({ offset, length, type, description }) =>
      [
        String(offset).padStart(14),
        String(length).padStart(14),
        String(type).padStart(4),
        ` ${description}`,
      ].join(" "),
    );
    const printed = ran.stdout.split("\n");
    expect(printed.slice(0, -3)).toEqual(text);
    const dirty = lines.filter(({ type }) => type === 1).length;
    expect(printed.slice(-3)).toEqual([
      `dirty: 2.4 GiB (40.0%) in ${dirty} extents`,
      `clean: 3.6 GiB (60.0%) in ${lines.length - dirty} extents`,
      `[${"▒".repeat(64)}]`,
    ]);
  });

  it("prints the error on stdout if it fails early", async () => {
    await using server = await serve(80 * GiB, { blockSize: 16 * BLOCK, failsAt: 16 * GiB });
    const ran = await nbdpull("map", server.uri(""), "--bitmap", "b0", "--json");
    expect(ran.code).toBe(1);
    expect(ran.json()).toMatchObject({ error: { errno: "EIO", serverText: "the bitmap is damaged" } });
    expect(ran.stderr).toContain("the bitmap is damaged");
  });

  it("stays incomplete if it fails late, and the error is a document on stderr", async () => {
    await using server = await serve(80 * GiB, { failsAt: 16 * GiB });
    const ran = await nbdpull("map", server.uri(""), "--bitmap", "b0", "--json");
    expect(ran.code).toBe(1);
    expect(ran.stdout.startsWith('[\n  {\n    "offset": 0,')).toBe(true);
    expect(() => ran.json()).toThrow(SyntaxError);
    const [message = "", ...rest] = ran.stderr.split("\n");
    expect(message).toMatch(/^nbdpull: .*the bitmap is damaged/);
    expect(JSON.parse(rest.join("\n"))).toMatchObject({ error: { errno: "EIO" } });
  });

  it("stops when its reader goes away", async () => {
    let requests = 0;
    await using server = await serve(1024 * GiB, { asked: () => (requests += 1) });
    const args = ["map", server.uri(""), "--bitmap", "b0", "--json"];
    const child = execa(process.execPath, [PROGRAM, ...args], { reject: false, buffer: { stdout: false } });
    child.stdout.once("data", () => child.stdout.destroy());
    const { exitCode, stderr } = await child;
    expect([exitCode, stderr]).toEqual([0, ""]);
    expect(requests).toBeLessThan(100);
  });
});

describe("the map of an empty export", () => {
  it("is an empty list, or a blank picture", async () => {
    await using server = await serve(0);
    const json = await nbdpull("map", server.uri(""), "--bitmap", "b0", "--json");
    expect([json.code, json.stdout]).toEqual([0, "[]"]);
    const text = await nbdpull("map", server.uri(""), "--bitmap", "b0");
    expect([text.code, text.stdout]).toEqual([0, `[${" ".repeat(64)}]`]);
  });
});

describeWith(["nbdinfo"], "a map's words", () => {
  it("are those of nbdinfo, for all flags in all contexts, and so are the totals", async () => {
    const contexts = ["base:allocation", CONTEXT, "qemu:allocation-depth", "x-other:context"];
    const types = [0, 1, 2, 3, 4, 5, 0, 7];
    function* describeFrom(offset: number): Generator<{ length: number; flags: number }> {
      for (let at = offset; at < types.length * BLOCK; at += BLOCK) {
        yield { length: BLOCK, flags: types[at / BLOCK] ?? 0 };
      }
    }
    await using server = await NbdServer.listen({
      exports: () => ({
        size: types.length * BLOCK,
        read: (_offset, length) => new Uint8Array(length),
        contexts: new Map(contexts.map((name) => [name, describeFrom])),
      }),
      address: { path: join(folder, "nbd.sock") },
    });
    const nbdinfo = async (...args: string[]): Promise<string> =>
      (await execa("nbdinfo", [...args, server.uri("")])).stdout;
    for (const context of contexts) {
      const map = ["map", server.uri(""), "--context", context];
      const json = (await nbdpull(...map, "--json")).json();
      expect(json).toEqual(JSON.parse(await nbdinfo(`--map=${context}`, "--json")));
      const totals = (await nbdpull(...map, "--totals", "--json")).json();
      expect(totals).toEqual(JSON.parse(await nbdinfo(`--map=${context}`, "--totals", "--json")));
      const { stdout } = await nbdpull(...map);
      const lines = stdout.split("\n").slice(0, types.length);
      const theirs = (await nbdinfo(`--map=${context}`)).split("\n");
      const words = (line: string): string => line.trim().replace(/ +/g, " ");
      expect(lines.map(words)).toEqual(theirs.map(words));
    }
    const text = await nbdpull("map", server.uri(""), "--context", "x-other:context", "--totals");
    expect(text.stdout.split("\n").slice(0, 2)).toEqual([
      "type 0: 128 KiB (25.0%) in 2 extents",
      "type 1: 64 KiB (12.5%) in 1 extent",
    ]);
  });
});
