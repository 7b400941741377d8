import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect, it } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import { listExports, NbdClient } from "../../src/nbd/index.js";
import { describeWith, findTool } from "../support/tools.js";
import { listensOn, makeAuthority, makeFolder, pattern } from "./servers.js";

describeWith(["nbd-server"], "with nbd-server", () => {
  /** @param certificates the folder of an authority; with it, TLS is required */
  async function serve(certificates?: string) {
    const folder = await makeFolder();
    const image = join(folder.path, "disk.raw");
    await writeFile(image, pattern(0, 1_000_000));
    const port = await freePort();
    const config = join(folder.path, "config");
    const tls =
      certificates === undefined
        ? ""
        : `force_tls = true\ncertfile = ${certificates}/server-cert.pem\nkeyfile = ${certificates}/server-key.pem\ncacertfile = ${certificates}/ca-cert.pem\n`;
    await writeFile(
      config,
      `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\nallowlist = true\n${tls}[disk]\nexportname = ${image}\n`,
    );
    // It becomes a daemon by itself; in the foreground it would serve only one client.
    const pidFile = join(folder.path, "pid");
    await execa(findTool("nbd-server") ?? "nbd-server", ["-C", config, "-p", pidFile]);
    await expect.poll(() => listensOn(port)).toBe(true);
    const dispose = async () => {
      process.kill(Number(await readFile(pidFile, "utf8")), "SIGTERM");
      await folder[Symbol.asyncDispose]();
    };
    return {
      base: `nbd://127.0.0.1:${port}`,
      secure: `nbds://127.0.0.1:${port}`,
      [Symbol.asyncDispose]: dispose,
    };
  }

  it("reads and writes in simple replies, to the last odd byte", async () => {
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

  it("lists exports, and fails quickly for a missing one", async () => {
    await using server = await serve();
    expect(await listExports(server.base)).toEqual([{ name: "disk" }]);
    await expect(NbdClient.connect(`${server.base}/nope`)).rejects.toMatchObject({
      code: "NBD_EXPORT_UNKNOWN",
    });
  });

  describeWith(["certtool"], "over TLS", () => {
    it("reads and writes with certificates on both sides, and lists exports", async () => {
      await using folder = await makeFolder();
      const { path } = await makeAuthority(folder, "ours");
      await using server = await serve(path);
      const parameters = `tls-certificates=${path}&tls-hostname=localhost`;
      expect(await listExports(`${server.secure}/?${parameters}`)).toEqual([{ name: "disk" }]);
      await using client = await NbdClient.connect(`${server.secure}/disk?${parameters}`);
      expect(client.export).toMatchObject({ size: 1_000_000, protocol: "simple", tls: true });
      await client.write(512, pattern(512, 65_536));
      const target = Buffer.alloc(1_000_000);
      await client.read(0, target);
      expect(target.equals(pattern(0, 1_000_000))).toBe(true);
    });

    it("refuses another name, another authority, and a plain connection if TLS is required", async () => {
      await using folder = await makeFolder();
      const { path } = await makeAuthority(folder, "ours");
      const { path: others } = await makeAuthority(folder, "strangers");
      await using server = await serve(path);
      const refused = async (uri: string, failure: object) => {
        await expect(NbdClient.connect(uri)).rejects.toMatchObject(failure);
      };
      const failed = { name: "TlsError", code: "NBD_TLS_FAILED" };
      await refused(`${server.secure}/disk?tls-certificates=${path}`, failed);
      await refused(`${server.secure}/disk?tls-certificates=${others}&tls-hostname=localhost`, failed);
      await refused(`${server.base}/disk`, { code: "NBD_TLS_REQUIRED" });
      await using plain = await serve();
      await refused(`${plain.secure}/disk?tls-certificates=${path}`, { code: "NBD_TLS_REFUSED" });
    });
  });
});
