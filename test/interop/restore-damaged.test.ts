/** Restores from chains in which something is missing or damaged. */
import { randomFillSync } from "node:crypto";
import { readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { makeFolder, startNbdkit } from "../nbd/servers.js";
import { flipByte } from "../support/flip-byte.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";
import { CLUSTER, SIZE, withThreePoints } from "../support/three-points.js";
import { describeWith } from "../support/tools.js";

const chain = withThreePoints();
const repo = (): string => chain().repository.path;
const idAt = (index: number): string => chain().points.at(index)?.id ?? "none";

function restoreTo(target: string, ...args: readonly string[]): Promise<Ran> {
  return nbdpull("restore", repo(), "--disk", "vda", "--to", target, "--force", "--json", ...args);
}

/** Flips one bit in a point's file. */
describeWith(["nbdkit"], "an incomplete or damaged chain", () => {
  /** Restores the newest point to an export and to a file; both must stay unchanged. */
  async function expectUntouched(told: Record<string, unknown>, message: RegExp): Promise<void> {
    await using folder = await makeFolder();
    const image = join(folder.path, "target");
    const before = randomFillSync(Buffer.alloc(SIZE + CLUSTER));
    await writeFile(image, before);
    await using server = await startNbdkit(folder, "file", image);
    const over = await restoreTo(server.uri);
    const file = join(folder.path, "vda.raw");
    await writeFile(file, "precious");
    const replaced = await restoreTo(file);
    for (const ran of [over, replaced]) {
      expect([ran.code, ran.stderr]).toEqual([3, expect.stringMatching(message)]);
      expect(ran.json()).toMatchObject({ error: told });
      expect(ran.stderr).not.toContain("half-written");
    }
    expect((await readFile(image)).equals(before)).toBe(true);
    expect(await readFile(file, "utf8")).toBe("precious");
  }

  it("stops a restore before any target is touched: a point is missing", async () => {
    await rm(chain().repository.pointFolder(MemoryChain.domain, idAt(1)), { recursive: true });
    await expectUntouched(
      { code: "E_CHAIN", point: idAt(2), disk: "vda", restorable: [idAt(0)] },
      new RegExp(`needs point ${idAt(1)}.*is missing.*Points that don't need it: ${idAt(0)}$`, "s"),
    );
  });

  it("stops a restore before any target is touched: a manifest is invalid", async () => {
    await writeFile(join(chain().repository.pointFolder(MemoryChain.domain, idAt(1)), "point.json"), "{");
    await expectUntouched(
      { code: "E_MANIFEST", point: idAt(1), disk: "vda", restorable: [idAt(0)] },
      new RegExp(`Points that don't need it: ${idAt(0)}$`),
    );
  });

  it("stops a restore before any target is touched: the point's own manifest is invalid", async () => {
    await writeFile(join(chain().repository.pointFolder(MemoryChain.domain, idAt(2)), "point.json"), "{");
    await expectUntouched(
      { code: "E_MANIFEST", point: idAt(2), restorable: [idAt(1), idAt(0)] },
      new RegExp(`Points that don't need it: ${idAt(1)}, ${idAt(0)}$`),
    );
  });

  it("stops a restore before any target is touched: a parent is newer than its child", async () => {
    const path = join(chain().repository.pointFolder(MemoryChain.domain, idAt(1)), "point.json");
    const manifest = await readFile(path, "utf8");
    await writeFile(path, manifest.replace(`"parent": "${idAt(0)}"`, `"parent": "${idAt(2)}"`));
    await expectUntouched({ code: "E_MANIFEST", point: idAt(1), restorable: [idAt(0)] }, /a parent is older/);
  });

  it.each(["digests", "qcow2"] as const)(
    "stops a restore before any target is touched: a layer's %s are damaged",
    async (suffix) => {
      const path = join(chain().repository.pointFolder(MemoryChain.domain, idAt(1)), `vda.${suffix}`);
      // The last byte of the digest file, or the first one of the image.
      await flipByte(path, suffix === "qcow2" ? 0 : (await stat(path)).size - 1);
      await expectUntouched(
        { point: idAt(1), disk: "vda", restorable: [idAt(0)] },
        new RegExp(`vda of point ${idAt(1)}.*Points that don't need it: ${idAt(0)}$`, "s"),
      );
    },
  );

  it("stops a restore before any target is touched: no point is left to restore", async () => {
    await rm(chain().pathOf(chain().points[0] as never, "vda.qcow2"));
    await expectUntouched(
      { point: idAt(0), disk: "vda", restorable: [] },
      /vda\.qcow2 is missing\. Points that don't need it: none$/,
    );
  });

  it("stops a restore in the middle if data is damaged, and the target is reported as half-written", async () => {
    await flipByte(chain().pathOf(chain().points[0] as never, "vda.qcow2"), 15 * CLUSTER + 99);
    await using folder = await makeFolder();
    await using server = await startNbdkit(folder, "memory", String(SIZE));
    const ran = await restoreTo(server.uri, "--in-flight", "64K", "--request-size", "64K");
    expect([ran.code, ran.json()]).toMatchObject([
      3,
      {
        error: {
          code: "E_DAMAGED",
          point: idAt(0),
          disk: "vda",
          guestOffset: expect.any(Number),
          target: server.uri,
          halfWritten: true,
          restorable: [],
        },
      },
    ]);
    expect(ran.stderr).toMatch(/disk vda of point .* at guest offset \d+: .*half-written/);
  });
});

describe("a folder that a restore made", () => {
  it("is removed if nothing was restored into it", async () => {
    await rm(chain().pathOf(chain().points[0] as never, "vda.qcow2"));
    const target = join(chain().folder, "new", "deep");
    expect((await nbdpull("restore", repo(), "--to", target)).code).toBe(3);
    await expect(stat(join(chain().folder, "new"))).rejects.toMatchObject({ code: "ENOENT" });
  });
});
