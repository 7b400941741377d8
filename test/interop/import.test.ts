/** Images made by others become points: a restore yields what QEMU reads in the image. */
import {
  appendFile,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as zlib from "node:zlib";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type ImportOptions, importImages } from "../../src/backup/take/import.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { finished, nbdpull, type Ran, startNbdpull } from "../support/nbdpull.js";
import { qemuImg, qemuIo, startQemuNbd } from "../support/qemu-nbd.js";
import { restoreDisk } from "../support/restore-disk.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

let folder: string;
let repo: string;
const at = (name: string): string => join(folder, name);
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-import-"));
  repo = at("repo");
});
afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

const importing = (image: string, ...args: string[]): Promise<Ran> =>
  nbdpull("import", image, "--to", repo, "--domain", "web", "--disk", "vda", "--json", ...args);

function expectError(ran: Ran, code: number, error: string): void {
  expect([ran.code, ran.json()]).toMatchObject([code, { error: { code: error } }]);
}

/** The import is refused with this code, by the function that the command calls. */
async function expectRefused(
  image: string,
  code: string,
  format: "qcow2" | "raw" = "qcow2",
): Promise<unknown> {
  const error = await importImages(importOptions(image, format)).catch((error: unknown) => error);
  expect(error).toMatchObject({ code });
  return error;
}

/** No point and no remains of one. */
async function expectNothingStored(): Promise<void> {
  expect(await readdir(join(repo, "web")).catch(() => [])).toEqual([]);
}

/** Imports an image by the command, and compares the restored disk with what QEMU reads in the image. */
async function expectImported(image: string, format: "qcow2" | "raw", ...args: string[]): Promise<void> {
  await expectUntouched(image, async () => {
    const ran = await importing(image, ...args);
    expect([ran.code, ran.code === 0 ? "" : ran.stderr]).toEqual([0, ""]);
    expect(ran.json()).toMatchObject({ level: "full", disks: [{ name: "vda", mode: "full", parent: null }] });
    await expectRestored(image, format);
  });
}

/** The same without the command, in a third of the time: for testing many kinds of images. */
async function expectTaken(
  image: string,
  options: Partial<ImportOptions> = {},
  format: "qcow2" | "raw" = "qcow2",
): Promise<void> {
  await expectUntouched(image, async () => {
    await importImages({ ...importOptions(image, format), ...options });
    await expectRestored(image, format);
  });
}

function importOptions(image: string, format: "qcow2" | "raw"): ImportOptions {
  return {
    images: [{ disk: "vda", path: image, format, formatAsked: false }],
    repositoryPath: repo,
    domain: "web",
    needLibvirt: false,
    format: "qcow2",
    digests: "xxh64",
    sync: false,
    tool: "test",
  };
}

async function expectUntouched(image: string, work: () => Promise<void>): Promise<void> {
  const before = await stat(image);
  await work();
  const after = await stat(image);
  expect([after.size, after.mtimeMs]).toEqual([before.size, before.mtimeMs]);
}

/** The newest point restores to what QEMU reads in the image, and verify finds nothing. */
async function expectRestored(image: string, format: "qcow2" | "raw"): Promise<void> {
  const repository = await Repository.open(repo);
  const ids = await repository.pointIds("web");
  const point = await repository.point("web", ids.at(-1) ?? "");
  const targetPath = at("restored.raw");
  await restoreDisk({
    repository,
    point,
    diskName: "vda",
    targetPath,
    format: "raw",
    force: true,
    sync: false,
  });
  await qemuImg("compare", "-s", "-f", "raw", "-F", format, targetPath, image).catch(async () => {
    // A raw image whose size is not a multiple of a sector can't be compared strictly.
    await qemuImg("compare", "-f", "raw", "-F", format, targetPath, image);
  });
  const reports = await verifyPoints(repository, "web", ids);
  expect(reports.flatMap(({ findings }) => findings)).toEqual([]);
}

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
    const image = at("disk.qcow2");
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
    await expectTaken(image);
  });

  it.each<[string, string, Partial<ImportOptions>]>([
    ["deflate", "cluster_size=64k", {}],
    ["deflate in version 2, compressed again", "compat=0.10", { compress: "deflate" }],
    ["deflate in small clusters, into a raw point", "cluster_size=4k", { format: "raw" }],
    ["deflate in large clusters", "cluster_size=2M", { window: { requestSize: 64 * 1024 } }],
    ["deflate with extended L2 entries", "extended_l2=on", {}],
  ])("decompresses it: %s", async (_title, settings, options) => {
    await writeFile(at("plain"), (await readFile(process.execPath)).subarray(0, 5 * MiB));
    const image = at("disk.qcow2");
    await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", settings, at("plain"), image);
    await expectTaken(image, options);
  });

  it("decompresses zstd if Node can, and otherwise stores nothing", async () => {
    await writeFile(at("plain"), Buffer.alloc(MiB, "compress me "));
    const image = at("disk.qcow2");
    await qemuImg(
      "convert",
      "-c",
      "-f",
      "raw",
      "-O",
      "qcow2",
      "-o",
      "compression_type=zstd",
      at("plain"),
      image,
    );
    if ("zstdDecompress" in zlib) return await expectImported(image, "qcow2");
    expectError(await importing(image), 1, "E_QCOW2_UNSUPPORTED");
    await expectNothingStored();
  });

  it("takes the active state of an image with snapshots and bitmaps, and reports that", async () => {
    const image = at("disk.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "qcow2", "write -P 1 0 1M");
    await qemuImg("snapshot", "-c", "then", image);
    await qemuImg("bitmap", "--add", image, "changes");
    await qemuIo(image, "qcow2", "write -P 2 0 64k");
    await expectImported(image, "qcow2");
    expect((await importing(image)).json()).toMatchObject({
      warnings: [
        expect.stringMatching(/1 internal snapshots.*qemu-img convert -l SNAPSHOT/),
        expect.stringContaining("--checkpoint"),
      ],
    });
  });

  it("whose clusters are shared, as its refcounts say, is refused with the way out, which works", async () => {
    const image = at("shared.qcow2");
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

    const ran = await importing(image);
    expectError(ran, 4, "E_SHARED_CLUSTERS");
    const advice = `qemu-img convert -O qcow2 ${image} UNSHARED.qcow2`;
    expect(ran.stderr).toContain(advice);
    await expectNothingStored();
    await execa("bash", ["-c", advice], { cwd: folder });
    await expectImported(at("UNSHARED.qcow2"), "qcow2");

    // Shared, but with a refcount of 1, it is damaged.
    bytes.writeUInt16BE(1, refcounts + (first / 65_536) * 2);
    await writeFile(image, bytes);
    expectError(await importing(image), 3, "E_QCOW2_ENTRY");
  });

  it("is refused if it has a backing file, which is never followed", async () => {
    await writeFile(at("base.raw"), "secret");
    await truncate(at("base.raw"), MiB);
    await qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", at("over.qcow2"));
    const ran = await importing(at("over.qcow2"));
    expectError(ran, 4, "E_HAS_BACKING");
    expect(ran.stderr).toContain("qemu-img convert");
    for (const name of ["json:{}", "/etc/passwd", "nbd:localhost:1", "../../x", "over.qcow2"]) {
      await qemuImg("rebase", "-u", "-b", name, "-F", "raw", at("over.qcow2"));
      await expectRefused(at("over.qcow2"), "E_HAS_BACKING");
    }
    await expectNothingStored();
  });

  it("is refused if it is marked as corrupt or is damaged, and nothing is left", async () => {
    const image = at("disk.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "qcow2", "write -P 1 0 4M");
    const sound = await readFile(image);
    const corrupt = Buffer.from(sound);
    corrupt.writeUInt8(2, 79);
    await writeFile(image, corrupt);
    await expectRefused(image, "E_QCOW2_HEADER");
    await writeFile(image, sound.subarray(0, 2 * MiB));
    expectError(await importing(image), 3, "E_QCOW2_ENTRY");
    await expectNothingStored();
  });
});

describeWith(["qemu-img", "qemu-nbd"], "an image that QEMU has open", () => {
  it.each(["qcow2", "raw"] as const)(
    "is neither imported nor replaced while it may be written to: %s",
    async (format) => {
      const image = at(`disk.${format}`);
      await qemuImg("create", "-q", "-f", format, image, "4M");
      await expectImported(image, format);
      const to = ["restore", repo, "--disk", "vda", "--to", image, "--force", "--json"];
      {
        await using _ = await startQemuNbd({ image, format, readOnly: false });
        expectError(await importing(image), 4, "E_IMAGE_IN_USE");
        expectError(await nbdpull(...to), 4, "E_TARGET_IN_USE");
      }
      {
        await using _ = await startQemuNbd({ image, format });
        expect((await importing(image)).code).toBe(0);
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
    await writeFile(at("plain"), Buffer.alloc(64 * 1024, "data "));
    await truncate(at("plain"), 512 * MiB);
    const image = at("disk.qcow2");
    await qemuImg("convert", ...args, "-f", "raw", "-O", "qcow2", at("plain"), image);
    await shareFirstCluster(image);
    expect(await expectRefused(image, "E_QCOW2_ENTRY")).toMatchObject({
      message: expect.stringMatching(/at guest offset \d+, .*(use|many)/),
    });
    await expectNothingStored();
  });

  it("is accepted if compression put as many clusters into one as it can", async () => {
    await writeFile(at("plain"), Buffer.alloc(4 * MiB, 0x5a));
    for (const options of ["cluster_size=4k", "cluster_size=64k", "cluster_size=2M"]) {
      const image = at("disk.qcow2");
      await qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, at("plain"), image);
      await importImages(importOptions(image, "qcow2"));
    }
  });
});

describeWith(["qemu-img", "qemu-io"], "import of a raw image", () => {
  it.each([
    ["sparse", 16 * MiB],
    ["with a size that is not a multiple of a sector", 5 * MiB + 4321],
    ["smaller than a cluster", 77],
  ])("restores every byte: %s", async (_title, size) => {
    const image = at("disk.raw");
    await writeFile(image, Buffer.alloc(Math.min(size, 100_000), 0x5a));
    await truncate(image, size);
    const kinds: Partial<ImportOptions>[] = [{}, { compress: "deflate" }, { format: "raw" }];
    for (const kind of kinds) {
      await expectTaken(image, kind, "raw");
      expect((await readFile(at("restored.raw"))).equals(await readFile(image))).toBe(true);
    }
  });

  it("leaves holes where it has zeroes", async () => {
    const image = at("disk.img");
    await writeFile(image, Buffer.alloc(8 * MiB));
    const ran = await importing(image);
    expect(ran.json()).toMatchObject({ disks: [{ dataBytes: 0, storedBytes: 0, zeroBytes: 8 * MiB }] });
  });

  it("is refused if it looks like qcow2 and nobody said that it is raw", async () => {
    const image = at("vda.1700000000");
    await qemuImg("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "qcow2", "write -P 1 0 1M");
    expectError(await importing(image), 2, "E_IMAGE_FORMAT");
    await expectNothingStored();
    await expectImported(image, "raw", "--image-format", "raw");
    await expectImported(image, "qcow2", "--image-format", "qcow2");
  });
});

describe("import", () => {
  it("refuses what is missing or not a plain file, and leaves no repository behind", async () => {
    await mkdir(at("folder"));
    await execa("mkfifo", [at("fifo")]);
    await symlink("nowhere", at("broken"));
    expectError(await importing(at("nothing")), 4, "E_NO_IMAGE");
    expectError(await importing(at("folder")), 2, "E_IMAGE_KIND");
    await expectRefused(at("broken"), "E_NO_IMAGE");
    await expectRefused(at("fifo"), "E_IMAGE_KIND");
    expect(await readdir(folder)).not.toContain("repo");
  });

  it("stores several images as one point, and refuses contradicting arguments", async () => {
    await writeFile(at("a.raw"), Buffer.alloc(MiB, 1));
    await writeFile(at("b.raw"), Buffer.alloc(MiB, 2));
    const disks = ["--disk", `vda=${at("a.raw")}`, "--disk", `vdb=${at("b.raw")}`];
    const ran = await nbdpull("import", "--to", repo, "--domain", "web", ...disks, "--json");
    expect(ran.json()).toMatchObject({ disks: [{ name: "vda" }, { name: "vdb" }] });
    for (const args of [
      [at("a.raw"), ...disks],
      [at("a.raw"), "--disk", `vda=${at("a.raw")}`],
      ["--disk", "vda"],
      ["--disk", "vda="],
    ]) {
      const refused = await nbdpull("import", ...args, "--to", repo, "--domain", "web", "--json");
      expectError(refused, 2, "E_USAGE");
    }
    const twice = await nbdpull("import", "--to", repo, "--domain", "web", ...disks, ...disks, "--json");
    expectError(twice, 2, "E_DISK_NAME");
    expect(await readdir(join(repo, "web"))).toHaveLength(1);
  });

  it("belongs to the domain with the given UUID", async () => {
    const image = at("vda.raw");
    await writeFile(image, Buffer.alloc(MiB, 1));
    const uuid = "aaaaaaaa-1111-4111-8111-111111111111";
    const other = "bbbbbbbb-2222-4222-8222-222222222222";
    expect((await importing(image, "--uuid", uuid.toUpperCase())).json()).toMatchObject({ uuid });
    expect((await importing(image, "--uuid", other)).json()).toMatchObject({
      uuid: other,
      folder: expect.stringContaining("/web@bbbbbbbb/"),
    });
    expectError(await importing(image), 2, "E_WHICH_DOMAIN");
  });

  it("stores nothing if the image changes meanwhile", async () => {
    const image = at("disk.raw");
    await writeFile(image, Buffer.alloc(4 * MiB, 7));
    let changed = false;
    const work = importImages({
      ...importOptions(image, "raw"),
      onProgress: () => {
        if (changed) return;
        changed = true;
        void appendFile(image, "x");
      },
    });
    await expect(work).rejects.toMatchObject({ code: "E_IMAGE_CHANGED" });
    await expectNothingStored();
  });

  it("warns without a checkpoint, and if libvirt can't be asked about it", async () => {
    await writeFile(at("a.raw"), Buffer.alloc(MiB, 1));
    expect((await importing(at("a.raw"))).json()).toMatchObject({
      checkpoint: null,
      warnings: [expect.stringContaining("no base for increments")],
    });
    const offline = await importing(at("a.raw"), "--checkpoint", "cp0", "--offline");
    expect(offline.json()).toMatchObject({
      checkpoint: "cp0",
      warnings: [expect.stringContaining("libvirt was not asked")],
    });
    const nowhere = `qemu+unix:///system?socket=${at("no-libvirt")}`;
    const env = { LIBVIRT_DEFAULT_URI: nowhere };
    const args = ["--to", repo, "--domain", "web", "--disk", "vda", "--checkpoint", "cp0", "--json"];
    const without = await finished(startNbdpull(["import", at("a.raw"), ...args], { env }));
    expect([without.code, without.json()]).toMatchObject([0, { checkpoint: "cp0" }]);
    const asked = ["import", at("a.raw"), ...args, "--connect", nowhere];
    expectError(await nbdpull(...asked), 4, "E_LIBVIRT");
    expectError(await importing(at("a.raw"), "--offline", "--connect", "qemu:///system"), 2, "E_USAGE");
    expect(await readdir(join(repo, "web"))).toHaveLength(3);
  });

  it("refuses a checkpoint that excludes the disk", async () => {
    await writeFile(at("a.raw"), Buffer.alloc(MiB, 1));
    class OneDisk extends Libvirt {
      override async domainUuid(): Promise<string> {
        return "8c2d5f0e-3f0b-4d5c-9a55-4a1c0f0f6a10";
      }
      override async domainName(): Promise<string> {
        return "web";
      }
      override async checkpointXml(): Promise<string> {
        return "<domaincheckpoint><name>cp0</name><creationTime>1700000000</creationTime><disks><disk name='vda' checkpoint='bitmap' bitmap='cp0'/><disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>";
      }
    }
    const options = {
      repositoryPath: repo,
      domain: "web",
      checkpoint: "cp0",
      libvirt: new OneDisk(),
      needLibvirt: false,
      format: "qcow2" as const,
      digests: "xxh64" as const,
      sync: false,
      tool: "test",
    };
    const image = (disk: string) => ({ disk, path: at("a.raw"), format: "raw" as const, formatAsked: false });
    for (const disk of ["vdb", "vdc"]) {
      const work = importImages({ ...options, images: [image(disk)] });
      await expect(work).rejects.toMatchObject({ code: "E_CHECKPOINT_DISK" });
    }
    await expectNothingStored();
    const { manifest } = await importImages({ ...options, images: [image("vda")] });
    expect(manifest.checkpoint).toEqual({ name: "cp0", creationTime: 1_700_000_000 });
    expect(manifest.domain.uuid).toBe("8c2d5f0e-3f0b-4d5c-9a55-4a1c0f0f6a10");
  });

  it("leaves no point when it is killed or interrupted, and works the next time", async () => {
    const image = at("disk.raw");
    const file = await open(image, "w");
    await file.write(Buffer.alloc(MiB, 3), 0, MiB, 0);
    await file.truncate(64 * MiB);
    await file.close();
    for (const signal of ["SIGINT", "SIGKILL"] as const) {
      const args = ["import", image, "--to", repo, "--domain", "web", "--disk", "vda", "--limit-rate", "1M"];
      const run = startNbdpull(args);
      const partial = async (): Promise<string[]> =>
        (await readdir(join(repo, "web")).catch(() => [])).filter((name) => name.endsWith(".partial"));
      await expect.poll(partial).toHaveLength(1);
      run.kill(signal);
      const ran = await run.ended;
      if (signal === "SIGINT") {
        expect(ran?.code).toBe(130);
        await expectNothingStored();
      } else expectError(await nbdpull("points", repo, "web", "--json"), 4, "E_NO_DOMAIN");
    }
    expect((await importing(image)).code).toBe(0);
    const names = (await readdir(join(repo, "web"))).filter((name) => !/^\d{8}T/.test(name));
    expect(names).toEqual([]);
  }, 480_000);
});
