/**
 * The backing file named in an image's header decides nothing; verify reports a name that is not the
 * parent's.
 */
import { rename, symlink } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Manifest } from "../../../src/backup/repository/manifest.js";
import { verifyPoints } from "../../../src/backup/verify/verify.js";
import { MemoryChain } from "../../support/memory-chain.js";
import { qemuImg } from "../../support/qemu-nbd.js";
import { restoreDisk } from "../../support/restore-disk.js";
import { describeWith } from "../../support/tools.js";

const CLUSTER = 64 * 1024;

let chain: MemoryChain;
let full: Manifest;
let increment: Manifest;
beforeEach(async () => {
  chain = await MemoryChain.start(8 * CLUSTER);
  chain.disk.write(0, Buffer.alloc(4 * CLUSTER, 0x11));
  full = (await chain.take()).manifest;
  chain.disk.write(CLUSTER, Buffer.alloc(512, 0x22));
  increment = (await chain.take()).manifest;
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const restored = (): Promise<unknown> =>
  restoreDisk({
    repository: chain.repository,
    point: increment,
    diskName: "vda",
    targetPath: join(chain.folder, "restored.raw"),
    format: "raw",
    force: true,
    sync: false,
  });

async function messages(): Promise<string[]> {
  const reports = await verifyPoints(chain.repository, MemoryChain.domain, [increment.id]);
  return reports.flatMap(({ findings }) => findings.map(({ message }) => message));
}

describeWith(["qemu-img"], "a backing name forged in a point's image", () => {
  it.each([
    ["absolute, though it is the parent's", () => chain.pathOf(full, "vda.qcow2")],
    ["the parent's by a detour", () => `../../${MemoryChain.domain}/${full.id}/vda.qcow2`],
    ["another file", () => "/etc/passwd"],
    ["out of the repository", () => "../../../../../../etc/passwd"],
    ["options in JSON", () => 'json:{"driver":"file","filename":"/etc/passwd"}'],
    ["a server", () => "nbd://localhost:1/x"],
    ["the image itself", () => "vda.qcow2"],
    ["empty", () => ""],
  ])("is reported by verify and never followed: %s", async (_title, name) => {
    expect(await messages()).toEqual([]);
    const image = chain.pathOf(increment, "vda.qcow2");
    await qemuImg("rebase", "-u", "-f", "qcow2", "-b", name(), "-F", "qcow2", image);
    expect(await messages()).toContainEqual(expect.stringContaining("names the backing file"));
    // Restored data is checked against the digests of the manifest's parent.
    await restored();
  });

  it("is reported by verify even if only its format differs", async () => {
    const image = chain.pathOf(increment, "vda.qcow2");
    await qemuImg("rebase", "-u", "-f", "qcow2", "-b", `../${full.id}/vda.qcow2`, "-F", "raw", image);
    expect(await messages()).toContainEqual(expect.stringContaining("names the backing file"));
  });

  it("does not make restore follow a link in place of the parent's image or folder", async () => {
    const image = chain.pathOf(full, "vda.qcow2");
    await rename(image, join(chain.folder, "moved.qcow2"));
    await symlink(join(chain.folder, "moved.qcow2"), image);
    await expect(restored()).rejects.toThrow("not a plain file");
    const folder = chain.repository.pointFolder(MemoryChain.domain, full.id);
    await rename(folder, join(chain.folder, "moved"));
    await symlink(join(chain.folder, "moved"), folder);
    await expect(restored()).rejects.toMatchObject({ code: "E_CHAIN" });
  });
});
