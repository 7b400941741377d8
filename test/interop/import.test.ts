/** What the command imports, and what it refuses. import-qcow2.test.ts has the kinds of qcow2 images. */
import { appendFile, mkdir, open, readdir, readFile, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { type ImportOptions, importImages } from "../../src/backup/take/import.js";
import { expectError, ImportLab } from "../support/import-lab.js";
import { nbdpull, runNbdpull, startNbdpull } from "../support/nbdpull.js";
import { qemuImg, qemuIo } from "../support/qemu-nbd.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 * 1024;

let lab: ImportLab;
beforeEach(async () => {
  lab = await ImportLab.start();
});
afterEach(async () => {
  await lab[Symbol.asyncDispose]();
});

describeWith(["qemu-img", "qemu-io"], "import of a raw image", () => {
  it.each([
    ["sparse", 16 * MiB],
    ["with a size that is not a multiple of a sector", 5 * MiB + 4321],
    ["smaller than a cluster", 77],
  ])("restores every byte: %s", async (_title, size) => {
    const image = lab.at("disk.raw");
    await writeFile(image, Buffer.alloc(Math.min(size, 100_000), 0x5a));
    await truncate(image, size);
    const kinds: Partial<ImportOptions>[] = [{}, { compress: "deflate" }, { format: "raw" }];
    for (const kind of kinds) {
      await lab.expectTaken(image, kind, "raw");
      expect((await readFile(lab.at("restored.raw"))).equals(await readFile(image))).toBe(true);
    }
  });

  it("leaves holes where it has zeroes", async () => {
    const image = lab.at("disk.img");
    await writeFile(image, Buffer.alloc(8 * MiB));
    const ran = await lab.importing(image);
    expect(ran.json()).toMatchObject({ disks: [{ dataBytes: 0, storedBytes: 0, zeroBytes: 8 * MiB }] });
  });

  it("is refused if it looks like qcow2 and nobody said that it is raw", async () => {
    const image = lab.at("vda.1700000000");
    await qemuImg("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "qcow2", "write -P 1 0 1M");
    expectError(await lab.importing(image), 2, "E_IMAGE_FORMAT");
    await lab.expectNothingStored();
    await lab.expectImported(image, "raw", "--image-format", "raw");
    await lab.expectImported(image, "qcow2", "--image-format", "qcow2");
  });
});

describe("import", () => {
  it("refuses what is missing or not a plain file, and leaves no repository behind", async () => {
    await mkdir(lab.at("folder"));
    await execa("mkfifo", [lab.at("fifo")]);
    await symlink("nowhere", lab.at("broken"));
    expectError(await lab.importing(lab.at("nothing")), 4, "E_NO_IMAGE");
    expectError(await lab.importing(lab.at("folder")), 2, "E_IMAGE_KIND");
    await lab.expectRefused(lab.at("broken"), "E_NO_IMAGE");
    await lab.expectRefused(lab.at("fifo"), "E_IMAGE_KIND");
    expect(await readdir(lab.folder)).not.toContain("repo");
  });

  it("stores several images as one point, and refuses contradicting arguments", async () => {
    await writeFile(lab.at("a.raw"), Buffer.alloc(MiB, 1));
    await writeFile(lab.at("b.raw"), Buffer.alloc(MiB, 2));
    const disks = ["--disk", `vda=${lab.at("a.raw")}`, "--disk", `vdb=${lab.at("b.raw")}`];
    const ran = await nbdpull("import", "--to", lab.repo, "--domain", "web", ...disks, "--json");
    expect(ran.json()).toMatchObject({ disks: [{ name: "vda" }, { name: "vdb" }] });
    for (const args of [
      [lab.at("a.raw"), ...disks],
      [lab.at("a.raw"), "--disk", `vda=${lab.at("a.raw")}`],
      ["--disk", "vda"],
      ["--disk", "vda="],
    ]) {
      const refused = await nbdpull("import", ...args, "--to", lab.repo, "--domain", "web", "--json");
      expectError(refused, 2, "E_USAGE");
    }
    const twice = await nbdpull("import", "--to", lab.repo, "--domain", "web", ...disks, ...disks, "--json");
    expectError(twice, 2, "E_DISK_NAME");
    expect(await readdir(join(lab.repo, "web"))).toHaveLength(1);
  });

  it("belongs to the domain with the given UUID", async () => {
    const image = lab.at("vda.raw");
    await writeFile(image, Buffer.alloc(MiB, 1));
    const uuid = "aaaaaaaa-1111-4111-8111-111111111111";
    const other = "bbbbbbbb-2222-4222-8222-222222222222";
    expect((await lab.importing(image, "--uuid", uuid.toUpperCase())).json()).toMatchObject({ uuid });
    expect((await lab.importing(image, "--uuid", other)).json()).toMatchObject({
      uuid: other,
      folder: expect.stringContaining("/web@bbbbbbbb/"),
    });
    expectError(await lab.importing(image), 2, "E_WHICH_DOMAIN");
  });

  it("stores nothing if the image changes meanwhile", async () => {
    const image = lab.at("disk.raw");
    await writeFile(image, Buffer.alloc(4 * MiB, 7));
    let changed = false;
    const work = importImages({
      ...lab.importOptions(image, "raw"),
      onProgress: () => {
        if (changed) return;
        changed = true;
        void appendFile(image, "x");
      },
    });
    await expect(work).rejects.toMatchObject({ code: "E_IMAGE_CHANGED" });
    await lab.expectNothingStored();
  });

  it("warns without a checkpoint, and if libvirt can't be asked about it", async () => {
    await writeFile(lab.at("a.raw"), Buffer.alloc(MiB, 1));
    expect((await lab.importing(lab.at("a.raw"))).json()).toMatchObject({
      checkpoint: null,
      warnings: [expect.stringContaining("no base for increments")],
    });
    const offline = await lab.importing(lab.at("a.raw"), "--checkpoint", "cp0", "--offline");
    expect(offline.json()).toMatchObject({
      checkpoint: "cp0",
      warnings: [expect.stringContaining("libvirt was not asked")],
    });
    const nowhere = `qemu+unix:///system?socket=${lab.at("no-libvirt")}`;
    const env = { LIBVIRT_DEFAULT_URI: nowhere };
    const args = ["--to", lab.repo, "--domain", "web", "--disk", "vda", "--checkpoint", "cp0", "--json"];
    const without = await runNbdpull(["import", lab.at("a.raw"), ...args], { env });
    expect([without.code, without.json()]).toMatchObject([0, { checkpoint: "cp0" }]);
    const asked = ["import", lab.at("a.raw"), ...args, "--connect", nowhere];
    expectError(await nbdpull(...asked), 4, "E_LIBVIRT");
    expectError(
      await lab.importing(lab.at("a.raw"), "--offline", "--connect", "qemu:///system"),
      2,
      "E_USAGE",
    );
    expect(await readdir(join(lab.repo, "web"))).toHaveLength(3);
  });

  it("refuses a checkpoint that excludes the disk", async () => {
    await writeFile(lab.at("a.raw"), Buffer.alloc(MiB, 1));
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
      repositoryPath: lab.repo,
      domain: "web",
      checkpoint: "cp0",
      libvirt: new OneDisk(),
      needLibvirt: false,
      format: "qcow2" as const,
      digests: "xxh64" as const,
      sync: false,
      tool: "test",
    };
    const image = (disk: string) => ({
      disk,
      path: lab.at("a.raw"),
      format: "raw" as const,
      formatAsked: false,
    });
    for (const disk of ["vdb", "vdc"]) {
      const work = importImages({ ...options, images: [image(disk)] });
      await expect(work).rejects.toMatchObject({ code: "E_CHECKPOINT_DISK" });
    }
    await lab.expectNothingStored();
    const { manifest } = await importImages({ ...options, images: [image("vda")] });
    expect(manifest.checkpoint).toEqual({ name: "cp0", creationTime: 1_700_000_000 });
    expect(manifest.domain.uuid).toBe("8c2d5f0e-3f0b-4d5c-9a55-4a1c0f0f6a10");
  });

  it("leaves no point when it is killed or interrupted, and works the next time", async () => {
    const image = lab.at("disk.raw");
    const file = await open(image, "w");
    await file.write(Buffer.alloc(16 * MiB, 3), 0, 16 * MiB, 0);
    await file.truncate(64 * MiB);
    await file.close();
    for (const signal of ["SIGINT", "SIGKILL"] as const) {
      const args = [
        "import",
        image,
        "--to",
        lab.repo,
        "--domain",
        "web",
        "--disk",
        "vda",
        "--limit-rate",
        "1M",
      ];
      const run = startNbdpull(args);
      const partial = async (): Promise<string[]> =>
        (await readdir(join(lab.repo, "web")).catch(() => [])).filter((name) => name.endsWith(".partial"));
      await expect.poll(partial).toHaveLength(1);
      run.kill(signal);
      const ran = await run.ended;
      if (signal === "SIGINT") {
        expect(ran?.code).toBe(130);
        await lab.expectNothingStored();
      } else expectError(await nbdpull("points", lab.repo, "web", "--json"), 4, "E_NO_DOMAIN");
    }
    expect((await lab.importing(image)).code).toBe(0);
    const names = (await readdir(join(lab.repo, "web"))).filter((name) => !/^\d{8}T/.test(name));
    expect(names).toEqual([]);
  }, 480_000);
});
