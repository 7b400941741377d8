/** `nbdpull pull URI -`: the whole disk, raw, on standard output. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { NbdServer, ServedError } from "../../src/nbd/index.js";
import { attachLoop, describeWithLoop } from "../support/loop-device.js";
import { NBDPULL, nbdpull } from "../support/nbdpull.js";
import { createImage, qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;
const PULL = `"${process.execPath}" "${NBDPULL}" pull`;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-stdout-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});
const at = (name: string): string => join(folder, name);

/** Runs a shell pipeline; `rc` is the exit code of nbdpull, its first command. */
async function shell(pipeline: string): Promise<{ rc: number; stdout: string; stderr: string }> {
  const { stdout, stderr } = await execa("bash", ["-c", `${pipeline}; echo "\${PIPESTATUS[0]}" >rc`], {
    cwd: folder,
    reject: false,
  });
  return { rc: Number(await readFile(at("rc"), "utf8")), stdout, stderr };
}

/** Data, zeroes and holes; the size is no multiple of 64 KiB. */
async function makeDisk(): Promise<string> {
  const image = at("disk.qcow2");
  await createImage(image, { size: 40 * MiB + 3 * 512 });
  await qemuIo(
    image,
    "qcow2",
    "write -P 1 0 5M",
    "write -P 2 5243392 512",
    "write -z 7M 2M",
    "write -P 0 12M 1M",
    "write -P 3 20M 9M",
    `write -P 4 ${40 * MiB + 512} 1024`,
  );
  await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, at("disk.raw"));
  return image;
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "a disk on standard output", () => {
  it("is byte for byte the disk, through a pipe and in a file, and the talk is on stderr", async () => {
    await using server = await startQemuNbd({ image: await makeDisk(), format: "qcow2" });
    const hash = await shell(`${PULL} '${server.uri}' - | sha256sum`);
    expect(hash.rc).toBe(0);
    const { stdout } = await execa("sha256sum", [at("disk.raw")]);
    expect(hash.stdout.split(" ")[0]).toBe(stdout.split(" ")[0]);
    expect(hash.stderr).toMatch(/^standard output: full copy of 40 MiB: .* read, the rest zeroes/);

    const compared = await shell(`${PULL} '${server.uri}' - --json | cmp - disk.raw`);
    expect([compared.rc, compared.stdout]).toEqual([0, ""]);
    const document = JSON.parse(compared.stderr) as Record<string, number>;
    expect(document).toMatchObject({ image: "-", format: "raw", mode: "full", virtualSize: 40 * MiB + 1536 });
    expect(document["readBytes"]).toBeLessThan(18 * MiB);

    const quiet = await shell(`${PULL} '${server.uri}' - --quiet >copy.raw`);
    expect([quiet.rc, quiet.stderr]).toEqual([0, ""]);
    expect((await readFile(at("copy.raw"))).equals(await readFile(at("disk.raw")))).toBe(true);
  });

  it("is refused with options that only an image file has, and on a terminal; stdout stays empty", async () => {
    await using server = await startQemuNbd({ image: await makeDisk(), format: "qcow2" });
    for (const option of [
      ["--bitmap", "b0"],
      ["--backing", "b.qcow2"],
      ["--backing-format", "raw"],
      ["--compress"],
      ["--digests"],
      ["--force"],
      ["--format", "qcow2"],
    ]) {
      const ran = await nbdpull("pull", server.uri, "-", ...option, "--json");
      expect([option, ran.code, ran.stdout]).toEqual([option, 2, ""]);
      expect(ran.stderr).toContain(
        `without ${option.join(" ").replace(/ (b0|b\.qcow2|raw)$/, "")}: name a file`,
      );
      expect(ran.stderr).toContain('"code": "E_STDOUT"');
    }
    const wrong = await nbdpull("pull", server.uri, "-", "--no-such-flag", "--json");
    expect([wrong.code, wrong.stdout]).toEqual([2, ""]);
    const { stdout: terminal } = await execa(
      "script",
      ["-qec", `${PULL} '${server.uri}' - --color never`, "/dev/null"],
      {
        reject: false,
      },
    );
    expect(terminal.trim()).toMatch(
      /^nbdpull: E_STDOUT: the disk would be printed on the terminal: send [^\n]*$/,
    );
  });
});

describeWithLoop("a disk on standard output that is a block device", () => {
  it("is all there, or ends for lack of room", async () => {
    await using server = await startQemuNbd({ image: await makeDisk(), format: "qcow2" });
    const disk = await readFile(at("disk.raw"));
    for (const [size, code] of [
      [48 * MiB, 0],
      [32 * MiB, 1],
    ] as const) {
      const backing = at(`device-${size}`);
      await (await open(backing, "wx")).close();
      await truncate(backing, size);
      const ran = await (async () => {
        await using device = await attachLoop(backing);
        return await shell(`${PULL} '${server.uri}' - >${device.path}`);
      })();
      expect([size, ran.rc]).toEqual([size, code]);
      if (code === 1)
        expect(ran.stderr).toMatch(/no space.*The output is incomplete: it has got at least \d+ of/);
      else expect((await readFile(backing)).subarray(0, disk.length).equals(disk)).toBe(true);
    }
  });
});

describe("a reader of standard output", () => {
  const SIZE = 1024 ** 4;

  /** A disk whose every 8 bytes are their own offset, and how much of it was read. */
  async function serve(failsAt = SIZE): Promise<{ server: NbdServer; read: () => number }> {
    let bytes = 0;
    const server = await NbdServer.listen({
      exports: () => ({
        size: SIZE,
        read: (offset, length) => {
          if (offset + length > failsAt) throw new ServedError("EIO", "a bad sector");
          bytes += length;
          return bytesAt(offset, length);
        },
      }),
      address: { path: at("nbd.sock") },
    });
    return { server, read: () => bytes };
  }

  function bytesAt(offset: number, length: number): Uint8Array {
    const words = new Float64Array(length / 8);
    for (let i = 0; i < words.length; i += 1) words[i] = offset + 8 * i;
    return new Uint8Array(words.buffer);
  }

  function start(server: NbdServer, ...options: string[]) {
    const child = spawn(process.execPath, [NBDPULL, "pull", server.uri("vda"), "-", ...options], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const stderr: Buffer[] = [];
    child.stderr.on("data", (chunk: Buffer) => stderr.push(chunk));
    const ended = once(child, "close").then(([code]) => ({
      code: code as number | null,
      stderr: Buffer.concat(stderr).toString(),
    }));
    const kill = async (): Promise<void> => {
      child.kill("SIGKILL");
      child.stdout.destroy();
      await ended;
    };
    return { child, ended, [Symbol.asyncDispose]: kill };
  }

  it("that is slow makes the pull wait, in bounded memory, and loses nothing", async () => {
    const { server, read } = await serve();
    await using _ = server;
    await using run = start(server);
    const { child, ended } = run;
    let position = 0;
    let wrong = 0;
    const take = async (upTo: number): Promise<void> => {
      while (position < upTo) {
        const chunk = child.stdout.read() as Buffer | null;
        if (chunk === null) {
          await once(child.stdout, "readable");
          continue;
        }
        const first = Math.floor(position / 8) * 8;
        const whole = Buffer.from(
          bytesAt(first, Math.ceil((position + chunk.length - first) / 8) * 8).buffer,
        );
        if (!chunk.equals(whole.subarray(position - first, position - first + chunk.length))) wrong += 1;
        position += chunk.length;
      }
    };
    for (const upTo of [1, 40 * MiB, 100 * MiB]) {
      await take(upTo);
      // It stands still once it is so far ahead, and never gets further.
      for (let last = -1; last !== read(); await sleep(400)) {
        last = read();
        expect(last - position).toBeLessThan(24 * MiB);
      }
      const status = await readFile(`/proc/${child.pid}/status`, "utf8");
      expect(Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1])).toBeLessThan(200 * 1024);
    }
    expect(wrong).toBe(0);
    child.stdout.destroy();
    expect((await ended).code).toBe(1);
  });

  it("that goes away ends the pull with exit 1 and the number of bytes", async () => {
    const { server, read } = await serve();
    await using _ = server;
    await using run = start(server, "--json");
    const { child, ended } = run;
    let taken = 0;
    for await (const chunk of child.stdout) {
      taken += (chunk as Buffer).length;
      if (taken > 4 * MiB) break;
    }
    const { code, stderr } = await ended;
    expect(code).toBe(1);
    const [message = "", ...document] = stderr.split("\n");
    expect(message).toMatch(
      /^nbdpull: E_STDOUT_CLOSED: the program that reads standard output closed it .* of 1099511627776 bytes$/,
    );
    const { error } = JSON.parse(document.join("\n")) as { error: Record<string, unknown> };
    expect(error).toMatchObject({ code: "E_STDOUT_CLOSED", virtualSize: SIZE });
    expect(error["writtenBytes"]).toBeGreaterThanOrEqual(3 * MiB);
    expect(read()).toBeLessThan(64 * MiB);
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("that takes nothing doesn't keep %s from ending the pull", async (signal, exit) => {
    const { server, read } = await serve();
    await using _ = server;
    await using run = start(server);
    const { child, ended } = run;
    for (let last = -1; last !== read() || last === 0; await sleep(100)) last = read();
    const started = performance.now();
    child.kill(signal);
    await once(child, "exit");
    // It would be for ever.
    expect(performance.now() - started).toBeLessThan(60_000);
    child.stdout.destroy();
    const { code, stderr } = await ended;
    expect([code, stderr]).toEqual([
      exit,
      `nbdpull: E_INTERRUPTED: interrupted by ${signal}: the output is incomplete\n`,
    ]);
  });

  it("gets no false end from a server that fails: exit 1, and how much of the disk it has", async () => {
    const { server } = await serve(9 * MiB);
    await using _ = server;
    await using run = start(server);
    const { child, ended } = run;
    let taken = 0;
    for await (const chunk of child.stdout) taken += (chunk as Buffer).length;
    const { code, stderr } = await ended;
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /a bad sector.*The output is incomplete: it has got at least \d+ of 1099511627776 bytes$/m,
    );
    expect(taken).toBeLessThan(9 * MiB);
    const told = Number(/at least (\d+) of/.exec(stderr)?.[1]);
    expect(told).toBeGreaterThan(0);
    expect(told).toBeLessThanOrEqual(taken);
  });
});
