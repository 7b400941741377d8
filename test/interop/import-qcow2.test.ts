/** Kinds of qcow2 images that others made. */
import { readFile, truncate, writeFile } from "node:fs/promises";
import * as zlib from "node:zlib";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type ImportOptions, importImages } from "../../src/backup/take/import.js";
import { expectError, ImportLab } from "../support/import-lab.js";
import { nbdpull } from "../support/nbdpull.js";
import { qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

let lab: ImportLab;
beforeEach(async () => {
  lab = await ImportLab.start();
});
afterEach(async () => {
  await lab[Symbol.asyncDispose]();
});

const WRITES = [
  "write -P 1 0 200k",
  "write -P 2 1M 64k",
  "write -z 2M 256k",
  "write -P 3 3900k 196k",
  "write -P 4 5000k 512",
  "write -z 128k 1k",
  "discard 64k 64k",
  "write -P 5 7M 1M",
];

describeWith(["qemu-img", "qemu-io"], "import of a qcow2 image", () => {
  it.each([
    ["version 3", ""],
    ["version 2", "compat=0.10"],
    ["clusters of 512 bytes", "cluster_size=512"],
    ["clusters of 4 KiB", "cluster_size=4k"],
    ["clusters of 2 MiB", "cluster_size=2M"],
    ["extended L2 entries", "extended_l2=on,cluster_size=64k"],
    ["large extended L2 entries", "extended_l2=on,cluster_size=2M"],
    ["preallocated tables", "preallocation=metadata"],
    ["preallocated clusters", "preallocation=full"],
    ["lazy refcounts", "lazy_refcounts=on"],
  ])("restores to what QEMU reads in it: %s", async (_title, options) => {
    const image = lab.at("disk.qcow2");
    await qemuImg(
      "create",
      "-q",
      "-f",
      "qcow2",
      ...(options ? ["-o", options] : []),
      image,
      String(9 * MiB + 512),
    );
    await qemuIo(image, "qcow2", ...WRITES);
    await lab.expectTaken(image);
  });

  it.each<[string, string, Partial<ImportOptions>]>([
    ["deflate", "cluster_size=64k", {}],
    ["deflate in version 2, compressed again", "compat=0.10", { compress: "deflate" }],
    ["deflate in small clusters, into a raw point", "cluster_size=4k", { format: "raw" }],
    ["deflate in large clusters", "cluster_size=2M", { window: { requestSize: 64 * 1024 } }],
    ["deflate with extended L2 entries", "extended_l2=on", {}],
  ])("decompresses it: %s", async (_title, settings, options) => {
    await writeFile(lab.at("plain"), (await readFile(process.execPath)).subarray(0, 5 * MiB));
    const image = lab.at("disk.qcow2");
    await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", settings, lab.at("plain"), image);
    await lab.expectTaken(image, options);
  });

  it("decompresses zstd if Node can, and otherwise stores nothing", async () => {
    await writeFile(lab.at("plain"), Buffer.alloc(MiB, "compress me "));
    const image = lab.at("disk.qcow2");
    await qemuImg(
      "convert",
      "-c",
      "-f",
      "raw",
      "-O",
      "qcow2",
      "-o",
      "compression_type=zstd",
      lab.at("plain"),
      image,
    );
    if ("zstdDecompress" in zlib) return await lab.expectImported(image, "qcow2");
    expectError(await lab.importing(image), 1, "E_QCOW2_UNSUPPORTED");
    await lab.expectNothingStored();
  });

  it("takes the active state of an image with snapshots and bitmaps, and reports that", async () => {
    const image = lab.at("disk.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "qcow2", "write -P 1 0 1M");
    await qemuImg("snapshot", "-c", "then", image);
    await qemuImg("bitmap", "--add", image, "changes");
    await qemuIo(image, "qcow2", "write -P 2 0 64k");
    await lab.expectImported(image, "qcow2");
    expect((await lab.importing(image)).json()).toMatchObject({
      warnings: [
        expect.stringMatching(/1 internal snapshots.*qemu-img convert -l SNAPSHOT/),
        expect.stringContaining("--checkpoint"),
      ],
    });
  });

  it("whose clusters are shared, as its refcounts say, is refused with the way out, which works", async () => {
    const image = lab.at("shared.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "qcow2", "write -P 7 0 128k", "write -P 9 1M 64k");
    const bytes = await readFile(image);
    const offsetAt = (at: number): number => Number(bytes.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
    const l2 = offsetAt(offsetAt(40));
    const refcounts = offsetAt(offsetAt(48));
    const [first, second] = [offsetAt(l2), offsetAt(l2 + 8)];
    // Both guest clusters are at `first` now: two references, none of them marked as the only one.
    bytes.writeBigUInt64BE(BigInt(first), l2);
    bytes.writeBigUInt64BE(BigInt(first), l2 + 8);
    bytes.writeUInt16BE(2, refcounts + (first / 65_536) * 2);
    bytes.writeUInt16BE(0, refcounts + (second / 65_536) * 2);
    await writeFile(image, bytes);
    expect(await qemuImg("check", image)).toContain("No errors were found");

    const ran = await lab.importing(image);
    expectError(ran, 4, "E_SHARED_CLUSTERS");
    const advice = `qemu-img convert -O qcow2 ${image} UNSHARED.qcow2`;
    expect(ran.stderr).toContain(advice);
    await lab.expectNothingStored();
    await execa("bash", ["-c", advice], { cwd: lab.folder });
    await lab.expectImported(lab.at("UNSHARED.qcow2"), "qcow2");

    // Shared, but with a refcount of 1, it is damaged.
    bytes.writeUInt16BE(1, refcounts + (first / 65_536) * 2);
    await writeFile(image, bytes);
    expectError(await lab.importing(image), 3, "E_QCOW2_ENTRY");
  });

  it("is refused if it has a backing file, which is never followed", async () => {
    await writeFile(lab.at("base.raw"), "secret");
    await truncate(lab.at("base.raw"), MiB);
    await qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", lab.at("over.qcow2"));
    const ran = await lab.importing(lab.at("over.qcow2"));
    expectError(ran, 4, "E_HAS_BACKING");
    expect(ran.stderr).toContain("qemu-img convert");
    for (const name of ["json:{}", "/etc/passwd", "nbd:localhost:1", "../../x", "over.qcow2"]) {
      await qemuImg("rebase", "-u", "-b", name, "-F", "raw", lab.at("over.qcow2"));
      await lab.expectRefused(lab.at("over.qcow2"), "E_HAS_BACKING");
    }
    await lab.expectNothingStored();
  });

  it("is refused if it is marked as corrupt or is damaged, and nothing is left", async () => {
    const image = lab.at("disk.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "qcow2", "write -P 1 0 4M");
    const sound = await readFile(image);
    const corrupt = Buffer.from(sound);
    corrupt.writeUInt8(2, 79);
    await writeFile(image, corrupt);
    await lab.expectRefused(image, "E_QCOW2_HEADER");
    await writeFile(image, sound.subarray(0, 2 * MiB));
    expectError(await lab.importing(image), 3, "E_QCOW2_ENTRY");
    await lab.expectNothingStored();
  });
});

describeWith(["qemu-img", "qemu-nbd"], "an image that QEMU has open", () => {
  it.each(["qcow2", "raw"] as const)(
    "is neither imported nor replaced while it may be written to: %s",
    async (format) => {
      const image = lab.at(`disk.${format}`);
      await qemuImg("create", "-q", "-f", format, image, "4M");
      await lab.expectImported(image, format);
      const to = ["restore", lab.repo, "--disk", "vda", "--to", image, "--force", "--json"];
      {
        await using _ = await startQemuNbd({ image, format, readOnly: false });
        expectError(await lab.importing(image), 4, "E_IMAGE_IN_USE");
        expectError(await nbdpull(...to), 4, "E_TARGET_IN_USE");
      }
      {
        await using _ = await startQemuNbd({ image, format });
        expect((await lab.importing(image)).code).toBe(0);
        expect((await nbdpull(...to)).code).toBe(0);
      }
    },
  );
});

/** Small files that would make points of any size: each cluster is stored once and used many times. */
describeWith(["qemu-img", "qemu-io"], "import of a qcow2 image whose clusters are shared", () => {
  /** Makes all entries of the first L2 table equal to the first one. */
  async function shareFirstCluster(image: string): Promise<void> {
    const bytes = await readFile(image);
    const table = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0xff_ffff_ffff_fe00n);
    const entry = bytes.subarray(table, table + 8);
    for (let at = table; at < table + 64 * 1024; at += 8) entry.copy(bytes, at);
    await writeFile(image, bytes);
  }

  it.each([
    ["uncompressed", []],
    ["compressed", ["-c"]],
  ])("is refused, and nothing is stored: %s", async (_title, args) => {
    await writeFile(lab.at("plain"), Buffer.alloc(64 * 1024, "data "));
    await truncate(lab.at("plain"), 512 * MiB);
    const image = lab.at("disk.qcow2");
    await qemuImg("convert", ...args, "-f", "raw", "-O", "qcow2", lab.at("plain"), image);
    await shareFirstCluster(image);
    expect(await lab.expectRefused(image, "E_QCOW2_ENTRY")).toMatchObject({
      message: expect.stringMatching(/at guest offset \d+, .*(use|many)/),
    });
    await lab.expectNothingStored();
  });

  it("is accepted if compression put as many clusters into one as it can", async () => {
    await writeFile(lab.at("plain"), Buffer.alloc(4 * MiB, 0x5a));
    for (const options of ["cluster_size=4k", "cluster_size=64k", "cluster_size=2M"]) {
      const image = lab.at("disk.qcow2");
      await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, lab.at("plain"), image);
      await importImages(lab.importOptions(image, "qcow2"));
    }
  });
});
