/** A pull over a line that breaks: it goes on with the server that it had, or says what is different. */
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { anyLength, CuttingLine } from "../support/cutting-line.js";
import { finished, nbdpull, startNbdpull } from "../support/nbdpull.js";
import { createImage, qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

let folder: string;
let image: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-reconnect-"));
  image = join(folder, "disk.qcow2");
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});
const out = (name: string): string => join(folder, name);

async function makeImage(): Promise<void> {
  await createImage(image, { size: 64 * MiB });
  const writes = Array.from({ length: 14 }, (_, i) => `write -P ${i + 1} ${i * 4 + (i % 3)}M 3M`);
  await qemuIo(image, "qcow2", ...writes, "write -z 60M 2M", "write -P 99 63M 1M");
}

interface Result {
  readonly outages: { readonly connectionsLost: number; readonly secondsWaited: number };
}

describeWith(["qemu-nbd", "qemu-io"], "a pull over a line that breaks again and again", () => {
  it.each([
    ["plain", ["--digests", "sha256"]],
    ["compressed", ["--compress"]],
    ["by one connection in large requests", ["--connections", "1", "--request-size", "8M"]],
  ])("has every byte of the disk: %s", async (_title, options) => {
    await makeImage();
    await using server = await startQemuNbd({ image, format: "qcow2" });
    await using line = await CuttingLine.to({ path: server.socket }, anyLength(7, 200, 3 * MiB));
    const ran = await nbdpull("pull", line.uri(), out("copy.qcow2"), "--json", ...options);
    expect([ran.code, ran.stderr]).toEqual([0, expect.stringMatching(/is back after/)]);
    expect(line.cuts).toBeGreaterThan(5);
    expect((ran.json() as Result).outages.connectionsLost).toBeGreaterThan(5);
    await qemuImg("compare", image, out("copy.qcow2"));
    await qemuImg("check", out("copy.qcow2"));
    if (options.includes("--digests")) expect(await readdir(folder)).toContain("copy.qcow2.digests");
  });

  it("has every byte of an increment, and of a stream", async () => {
    await makeImage();
    await qemuImg("bitmap", "--add", image, "b0");
    await qemuIo(image, "qcow2", "write -P 200 5M 9M", "write -z 20M 1M");
    await using server = await startQemuNbd({ image, format: "qcow2", bitmap: "b0" });
    await using line = await CuttingLine.to({ path: server.socket }, anyLength(11, 200, 2 * MiB));
    const copy = out("inc.qcow2");
    const incremental = await nbdpull("pull", line.uri(), copy, "--bitmap", "b0", "--json");
    expect(incremental.code).toBe(0);
    for (const pattern of ["-P 200 5M 9M", "-P 0 20M 1M"]) await qemuIo(copy, "qcow2", `read ${pattern}`);
    expect(incremental.json()).toMatchObject({ dirtyBytes: 10 * MiB });
    const args = ["pull", line.uri(), "-", "--quiet"];
    await execa("node", [join("dist", "bin", "nbdpull.js"), ...args], { stdout: { file: out("s.raw") } });
    await qemuImg("compare", "-f", "qcow2", "-F", "raw", image, out("s.raw"));
  });
});

describeWith(["qemu-nbd", "qemu-io"], "a pull whose connection is lost", () => {
  const SLOW = ["--limit-rate", "4M", "--request-size", "64K", "--json"];

  /** Blocks of the file that a pull fills. */
  async function storedBlocks(): Promise<number> {
    const name = (await readdir(folder)).find((each) => /^\..*copy/.test(each));
    return name === undefined ? 0 : (await stat(join(folder, name))).blocks;
  }

  async function begun(run: ReturnType<typeof startNbdpull>): Promise<typeof run> {
    await expect.poll(storedBlocks, { timeout: 20_000 }).toBeGreaterThan(0);
    return run;
  }

  it("waits for the server, and tells how long", async () => {
    await makeImage();
    await using server = await startQemuNbd({ image, format: "qcow2" });
    await using line = await CuttingLine.to({ path: server.socket });
    const fast = ["--limit-rate", "8M", "--json"];
    const run = await begun(startNbdpull(["pull", line.uri(), out("copy.raw"), ...fast]));
    line.isDown = true;
    line.cut();
    await expect.poll(() => line.refused).toBeGreaterThan(0);
    await sleep(2500);
    line.isDown = false;
    const ran = await finished(run);
    expect(ran.code).toBe(0);
    expect(ran.stderr).toMatch(/copy\.raw: the connection was lost \(.*\): waiting up to 60 s for it\n/);
    const [, told] = /copy\.raw: the connection is back after (\d+\.\d) s/.exec(ran.stderr) ?? [];
    expect(Number(told)).toBeGreaterThan(2.3);
    expect((ran.json() as Result).outages.secondsWaited).toBeGreaterThan(2.3);
    await qemuImg("compare", "-f", "qcow2", "-F", "raw", image, out("copy.raw"));
  });

  it("fails at once with --reconnect 0, after its time, and on a signal, and leaves nothing", async () => {
    await makeImage();
    await using server = await startQemuNbd({ image, format: "qcow2" });
    await using line = await CuttingLine.to({ path: server.socket });
    for (const [reconnect, code, least, most] of [
      // It would be a minute by default.
      ["0", "NBD_CONNECTION_LOST", 0, 40_000],
      ["2", "NBD_CONNECTION_LOST", 1900, 40_000],
    ] as const) {
      const run = await begun(
        startNbdpull(["pull", line.uri(), out("copy.raw"), ...SLOW, "--reconnect", reconnect]),
      );
      line.isDown = true;
      line.cut();
      const since = performance.now();
      const ran = await finished(run);
      line.isDown = false;
      expect([ran.code, ran.json()]).toMatchObject([1, { error: { code } }]);
      expect(performance.now() - since).toBeGreaterThan(least);
      expect(performance.now() - since).toBeLessThan(most);
    }
    const run = await begun(startNbdpull(["pull", line.uri(), out("copy.raw"), ...SLOW]));
    line.isDown = true;
    line.cut();
    await sleep(700);
    const since = performance.now();
    run.kill("SIGTERM");
    expect((await finished(run)).code).toBe(143);
    expect(performance.now() - since).toBeLessThan(40_000);
    expect(await readdir(folder)).toEqual(["disk.qcow2"]);
  });

  it("refuses a server that came back on the same port with another size", async () => {
    await makeImage();
    const other = join(folder, "other.qcow2");
    await createImage(other, { size: 65 * MiB });
    await using first = await startQemuNbd({ image, format: "qcow2" });
    const where: { path: string } = { path: first.socket };
    await using line = await CuttingLine.to(where);
    const run = await begun(startNbdpull(["pull", line.uri(), out("copy.raw"), ...SLOW]));
    await using second = await startQemuNbd({ image: other, format: "qcow2" });
    where.path = second.socket;
    await first.stop();
    const ran = await finished(run);
    expect([ran.code, ran.json()]).toMatchObject([
      1,
      {
        error: {
          code: "NBD_EXPORT_CHANGED",
          message: expect.stringContaining("its size is 68157440 instead of 67108864"),
        },
      },
    ]);
  });

  it("doesn't wait for the server of a Unix socket that is gone", async () => {
    await makeImage();
    await using server = await startQemuNbd({ image, format: "qcow2" });
    const run = await begun(startNbdpull(["pull", server.uri, out("copy.raw"), ...SLOW]));
    const since = performance.now();
    await server.stop();
    const ran = await finished(run);
    expect(performance.now() - since).toBeLessThan(40_000);
    expect([ran.code, ran.json()]).toMatchObject([1, { error: { code: "NBD_CLOSED_BY_SERVER" } }]);
  });
});
