/** Images made by others become points: a restore yields what QEMU reads in the image. */
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import { Repository } from "../../src/backup/repository/repository.js";
import { type ImportOptions, importImages } from "../../src/backup/take/import.js";
import { verifyPoints } from "../../src/backup/verify/verify.js";
import { nbdpull, type Ran } from "./nbdpull.js";
import { qemuImg } from "./qemu-nbd.js";
import { restoreDisk } from "./restore-disk.js";

/** A folder with images and a repository that takes them. */
export class ImportLab implements AsyncDisposable {
  readonly folder: string;
  readonly repo: string;

  private constructor(folder: string) {
    this.folder = folder;
    this.repo = join(folder, "repo");
  }

  static async start(): Promise<ImportLab> {
    return new ImportLab(await mkdtemp(join(tmpdir(), "nbdpull-import-")));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }

  at(name: string): string {
    return join(this.folder, name);
  }

  importing(image: string, ...args: string[]): Promise<Ran> {
    const to = ["--to", this.repo, "--domain", "web", "--disk", "vda", "--json"];
    return nbdpull("import", image, ...to, ...args);
  }

  /** The import is refused with this code, by the function that the command calls. */
  async expectRefused(image: string, code: string, format: "qcow2" | "raw" = "qcow2"): Promise<unknown> {
    const error = await importImages(this.importOptions(image, format)).catch((error: unknown) => error);
    expect(error).toMatchObject({ code });
    return error;
  }

  /** No point and no remains of one. */
  async expectNothingStored(): Promise<void> {
    expect(await readdir(join(this.repo, "web")).catch(() => [])).toEqual([]);
  }

  /** Imports an image by the command, and compares the restored disk with what QEMU reads in the image. */
  async expectImported(image: string, format: "qcow2" | "raw", ...args: string[]): Promise<void> {
    await this.#expectUntouched(image, async () => {
      const ran = await this.importing(image, ...args);
      expect([ran.code, ran.code === 0 ? "" : ran.stderr]).toEqual([0, ""]);
      expect(ran.json()).toMatchObject({
        level: "full",
        disks: [{ name: "vda", mode: "full", parent: null }],
      });
      await this.expectRestored(image, format);
    });
  }

  /** The same without the command, in a third of the time: for testing many kinds of images. */
  async expectTaken(
    image: string,
    options: Partial<ImportOptions> = {},
    format: "qcow2" | "raw" = "qcow2",
  ): Promise<void> {
    await this.#expectUntouched(image, async () => {
      await importImages({ ...this.importOptions(image, format), ...options });
      await this.expectRestored(image, format);
    });
  }

  importOptions(image: string, format: "qcow2" | "raw"): ImportOptions {
    return {
      images: [{ disk: "vda", path: image, format, formatAsked: false }],
      repositoryPath: this.repo,
      domain: "web",
      needLibvirt: false,
      format: "qcow2",
      digests: "xxh64",
      sync: false,
      tool: "test",
    };
  }

  async #expectUntouched(image: string, work: () => Promise<void>): Promise<void> {
    const before = await stat(image);
    await work();
    const after = await stat(image);
    expect([after.size, after.mtimeMs]).toEqual([before.size, before.mtimeMs]);
  }

  /** The newest point restores to what QEMU reads in the image, and verify finds nothing. */
  async expectRestored(image: string, format: "qcow2" | "raw"): Promise<void> {
    const repository = await Repository.open(this.repo);
    const ids = await repository.pointIds("web");
    const point = await repository.point("web", ids.at(-1) ?? "");
    const targetPath = this.at("restored.raw");
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
}

export function expectError(ran: Ran, code: number, error: string): void {
  expect([ran.code, ran.json()]).toMatchObject([code, { error: { code: error } }]);
}
