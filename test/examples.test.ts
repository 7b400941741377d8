import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { createImage, qemuImg, qemuIo, startQemuNbd } from "./support/qemu-nbd.js";
import { describeWith } from "./support/tools.js";

const MiB = 1024 * 1024;
const EXAMPLES = join(dirname(fileURLToPath(import.meta.url)), "..", "dist", "examples");

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-examples-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

async function example(name: string, ...args: string[]): Promise<string> {
  return (await execa(process.execPath, [join(EXAMPLES, `${name}.js`), ...args])).stdout;
}

describeWith(["qemu-nbd", "qemu-img", "qemu-io"], "the examples", () => {
  it("read-range shows the requested bytes", async () => {
    const content = randomBytes(8192);
    await writeFile(join(folder, "disk"), content);
    await using server = await startQemuNbd({ image: join(folder, "disk"), format: "raw" });
    expect(await example("read-range", server.uri, "4000", "500")).toBe(content.toString("hex", 4000, 4500));
  });

  it("map-bitmap lists dirty extents, and which of them are zeroes", async () => {
    const image = join(folder, "disk.qcow2");
    await createImage(image, { size: 4 * MiB });
    await qemuIo(image, "qcow2", "write -P 1 0 4M");
    await qemuImg("bitmap", "--add", image, "b0");
    await qemuIo(image, "qcow2", "write -P 2 1M 64k", "write -z 2M 128k");
    await using server = await startQemuNbd({ image, format: "qcow2", bitmap: "b0" });
    expect(await example("map-bitmap", server.uri, "b0")).toBe(
      ["dirty 1048576 +65536", "dirty 2097152 +131072", "196608 bytes dirty, 131072 of them zeroes"].join(
        "\n",
      ),
    );
  });

  it("copy-export copies one server's export to another's", async () => {
    const source = join(folder, "source.qcow2");
    const target = join(folder, "target.qcow2");
    for (const path of [source, target]) await createImage(path, { size: 16 * MiB + 512 });
    await qemuIo(source, "qcow2", "write -P 1 1M 3M", "write -P 2 16M 512");
    await qemuIo(target, "qcow2", "write -P 9 0 16M");
    {
      await using from = await startQemuNbd({ image: source, format: "qcow2" });
      await using to = await startQemuNbd({ image: target, format: "qcow2", readOnly: false });
      expect(await example("copy-export", from.uri, to.uri)).toMatch(/^16777728 bytes copied/);
    }
    await qemuImg("compare", source, target);
  });

  it("write-image writes a file to a server", async () => {
    const content = randomBytes(3 * MiB + 512);
    await writeFile(join(folder, "image"), content);
    await createImage(join(folder, "disk"), { format: "raw", size: 4 * MiB });
    {
      await using server = await startQemuNbd({
        image: join(folder, "disk"),
        format: "raw",
        readOnly: false,
      });
      expect(await example("write-image", join(folder, "image"), server.uri)).toMatch(
        /written and read back/,
      );
    }
    expect((await readFile(join(folder, "disk"))).subarray(0, content.length).equals(content)).toBe(true);
  });

  it("save-export writes an export to a raw file", async () => {
    const content = Buffer.concat([randomBytes(5000), Buffer.alloc(2 * MiB), randomBytes(4096 + 512)]);
    await writeFile(join(folder, "disk"), content);
    await using server = await startQemuNbd({ image: join(folder, "disk"), format: "raw" });
    await example("save-export", server.uri, join(folder, "saved"));
    expect((await readFile(join(folder, "saved"))).subarray(0, content.length).equals(content)).toBe(true);
  });

  it("backup-engine takes a point, verifies, restores and prunes", async () => {
    const content = Buffer.concat([randomBytes(MiB), Buffer.alloc(MiB)]);
    await writeFile(join(folder, "disk"), content);
    await using server = await startQemuNbd({ image: join(folder, "disk"), format: "raw" });
    const restored = join(folder, "restored");
    const said = await example("backup-engine", server.uri, join(folder, "points"), restored);
    expect(said.split("\n")).toEqual([
      expect.stringMatching(/^\d{8}T\d{6}\.\d{3}Z is taken$/),
      "it is sound",
      `${restored} is restored, and proven`,
      "1 kept",
    ]);
    expect((await readFile(restored)).equals(content)).toBe(true);
  });
});
