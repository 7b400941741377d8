import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { createImage, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith, SKIP_WITHOUT_ROOT } from "../support/tools.js";

let folder: string;
let image: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-failures-"));
  image = join(folder, "disk.qcow2");
  await mkdir(join(folder, "out"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});
const out = (name: string): string => join(folder, "out", name);
const leftBehind = (): Promise<string[]> => readdir(join(folder, "out"));

async function makeImage(size: string, ...commands: string[]): Promise<void> {
  await createImage(image, { size: Number(size) * 1024 * 1024 });
  if (commands.length > 0) await qemuIo(image, "qcow2", ...commands);
}

describeWith(["qemu-nbd", "qemu-io"], "a pull that is not possible", () => {
  it("exits with 4 if the bitmap is missing, and never makes a full copy instead", async () => {
    await makeImage("8", "write -P 1 0 1M");
    await using server = await startQemuNbd({ image, format: "qcow2" });
    const ran = await nbdpull("pull", server.uri, out("inc.qcow2"), "--bitmap", "nightly", "--json");
    expect(ran.code).toBe(4);
    expect(ran.stderr).toMatch(/no dirty bitmap "nightly".*nbdpull info/s);
    expect(ran.json()).toMatchObject({ error: { code: "E_NO_BITMAP", bitmap: "nightly" } });
    expect(await leftBehind()).toEqual([]);
  });

  it("exits with 4 if the export is unknown", async () => {
    await makeImage("8");
    await using server = await startQemuNbd({ image, format: "qcow2", exportName: "vda" });
    const ran = await nbdpull("pull", server.uri.replace("/vda", "/vdz"), out("x.qcow2"));
    expect(ran.code).toBe(4);
    expect(ran.stderr).toMatch(/vdz.*nbdpull info --list/s);
    expect(await leftBehind()).toEqual([]);
  });

  it("exits with 1 if no server answers", async () => {
    const ran = await nbdpull("pull", `nbd+unix:///?socket=${folder}/none.sock`, out("x.qcow2"), "--json");
    expect(ran.code).toBe(1);
    expect(ran.json()).toMatchObject({ error: { code: "NBD_CONNECT_FAILED" } });
    expect(ran.stderr).toContain("none.sock");
    expect(await leftBehind()).toEqual([]);
  });

  it("exits with 2 if the image exists, and leaves it alone unless --force is given", async () => {
    await makeImage("8", "write -P 1 0 1M");
    await writeFile(out("x.raw"), "precious");
    await using server = await startQemuNbd({ image, format: "qcow2" });
    const ran = await nbdpull("pull", server.uri, out("x.raw"));
    expect(ran.code).toBe(2);
    expect(ran.stderr).toContain("--force");
    expect(await readFile(out("x.raw"), "utf8")).toBe("precious");
    expect((await nbdpull("pull", server.uri, out("x.raw"), "--force")).code).toBe(0);
    expect((await readFile(out("x.raw"))).length).toBe(8 * 1024 * 1024);
    expect(await leftBehind()).toEqual(["x.raw"]);
  });

  it("exits with 2 for invalid flags and addresses", async () => {
    const uri = `nbd+unix:///?socket=${folder}/none.sock`;
    for (const args of [
      ["pull", "http://example", out("x")],
      ["pull", uri],
      ["pull", uri, out("x"), "--request-size", "lots"],
      ["pull", uri, out("x"), "--connections", "0"],
      ["pull", uri, out("x"), "--no-such-flag"],
      ["nonsense"],
    ]) {
      const ran = await nbdpull(...args);
      expect([args, ran.code]).toEqual([args, 2]);
      expect(ran.stderr).not.toMatch(/\n\s+at /);
    }
    expect(await leftBehind()).toEqual([]);
  });

  it("exits with 4 if the backing image is missing", async () => {
    await makeImage("8");
    await execa("qemu-img", ["bitmap", "--add", image, "b0"]);
    await using server = await startQemuNbd({ image, format: "qcow2", bitmap: "b0" });
    const ran = await nbdpull(
      "pull",
      server.uri,
      out("inc.qcow2"),
      "--bitmap",
      "b0",
      "--backing",
      out("gone.qcow2"),
    );
    expect(ran.code).toBe(4);
    expect(ran.stderr).toContain("gone.qcow2");
    expect(await leftBehind()).toEqual([]);
  });
});

describeWith(["nbdkit"], "a pull that fails half-way", () => {
  /** Starts nbdkit on a Unix socket; the test ends it. */
  async function startNbdkit(...args: string[]): Promise<{ uri: string; kill(): Promise<void> }> {
    const socket = join(folder, "nbdkit.sock");
    const server = execa("nbdkit", ["-f", "-U", socket, ...args], { reject: false });
    const kill = async (): Promise<void> => {
      server.kill("SIGKILL");
      await server;
    };
    await expect.poll(() => readdir(folder)).toContain("nbdkit.sock");
    return { uri: `nbd+unix:///?socket=${socket}`, kill };
  }

  async function untilTemporary(): Promise<void> {
    await expect.poll(leftBehind).toHaveLength(1);
  }

  it("exits with 1 and leaves nothing when the server dies", async () => {
    const server = await startNbdkit("--filter=rate", "pattern", "64M", "rate=40M");
    const run = startNbdpull(["pull", server.uri, out("x.qcow2")]);
    await untilTemporary();
    await sleep(200);
    await server.kill();
    const ran = await finished(run);
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/^nbdpull: .+/);
    expect(await leftBehind()).toEqual([]);
  });

  it("exits with 1 and reports the server's error when a read fails", async () => {
    const error = ["error-pread=EIO", "error-pread-rate=100%", `error-file=${folder}/fail`];
    const server = await startNbdkit(
      "--filter=error",
      "--filter=rate",
      "pattern",
      "64M",
      "rate=80M",
      ...error,
    );
    const run = startNbdpull(["pull", server.uri, out("x.qcow2"), "--json"]);
    await untilTemporary();
    await writeFile(join(folder, "fail"), "");
    const ran = await finished(run);
    await server.kill();
    expect(ran.code).toBe(1);
    expect(ran.stderr).toMatch(/EIO/);
    expect(ran.json()).toMatchObject({ error: { code: "NBD_REQUEST_FAILED" } });
    expect(await leftBehind()).toEqual([]);
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const)("exits with the code for %s and leaves nothing", async (signal, code) => {
    const server = await startNbdkit("--filter=rate", "pattern", "64M", "rate=8M");
    const run = startNbdpull(["pull", server.uri, out("x.raw")]);
    await untilTemporary();
    run.kill(signal);
    const ran = await finished(run);
    await server.kill();
    expect(ran.code).toBe(code);
    expect(ran.stderr).toContain(signal);
    expect(await leftBehind()).toEqual([]);
  });

  it.skipIf(SKIP_WITHOUT_ROOT)(
    "exits with 1 when the target's file system is full (needs root)",
    async () => {
      const small = join(folder, "small");
      await mkdir(small);
      await execa("mount", ["-t", "tmpfs", "-o", "size=4M", "tmpfs", small]);
      try {
        const server = await startNbdkit("pattern", "64M");
        const ran = await nbdpull("pull", server.uri, join(small, "x.qcow2"));
        expect(ran.code).toBe(1);
        expect(ran.stderr).toMatch(/no space left.*make room/);
        expect(await readdir(small)).toEqual([]);
        await server.kill();
      } finally {
        await execa("umount", [small]);
      }
    },
  );
});
