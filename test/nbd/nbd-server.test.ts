import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { listExports, NbdClient } from "../../src/nbd/index.js";
import { describeWith, findTool } from "../support/tools.js";
import { freePort, listensOn, makeFolder, pattern } from "./servers.js";

describeWith(["nbd-server"], "with nbd-server", () => {
  async function serve() {
    const folder = await makeFolder();
    const image = join(folder.path, "disk.raw");
    await writeFile(image, pattern(0, 1_000_000));
    const port = await freePort();
    const config = join(folder.path, "config");
    await writeFile(
      config,
      `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\nallowlist = true\n[disk]\nexportname = ${image}\n`,
    );
    // It goes to the background by itself: in the foreground it would serve one client only.
    const pidFile = join(folder.path, "pid");
    await execa(findTool("nbd-server") ?? "nbd-server", ["-C", config, "-p", pidFile]);
    await expect.poll(() => listensOn(port)).toBe(true);
    const dispose = async () => {
      process.kill(Number(await readFile(pidFile, "utf8")), "SIGTERM");
      await folder[Symbol.asyncDispose]();
    };
    return { base: `nbd://127.0.0.1:${port}`, [Symbol.asyncDispose]: dispose };
  }

  it("reads and writes in simple replies, to the last ragged byte", async () => {
    await using server = await serve();
    await using client = await NbdClient.connect(`${server.base}/disk`);
    expect(client.export).toMatchObject({ size: 1_000_000, protocol: "simple", canDf: false });
    const target = Buffer.alloc(1_000_000);
    await client.read(0, target);
    expect(target.equals(pattern(0, 1_000_000))).toBe(true);
    await client.write(512, Buffer.alloc(1024, 7));
    await client.read(0, target);
    expect(target.subarray(512, 1536).equals(Buffer.alloc(1024, 7))).toBe(true);
  });

  it("lists exports, and fails in time for one that doesn't exist", async () => {
    await using server = await serve();
    expect(await listExports(server.base)).toEqual([{ name: "disk" }]);
    await expect(NbdClient.connect(`${server.base}/nope`)).rejects.toMatchObject({
      code: "NBD_EXPORT_UNKNOWN",
    });
  });
});
