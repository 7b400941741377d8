/** What the tests of `nbdpull backup` share: a lab, a repository, and checks of what a backup left. */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import { removeMeanwhile } from "./libvirt-daemon.js";
import { LAB_DISKS, Lab, type LabDisk, type LabOptions, virsh } from "./libvirt-lab.js";
import { type Ran, type Running, runNbdpull, type StartOptions, startNbdpull } from "./nbdpull.js";
import { qemuImg } from "./qemu-nbd.js";
import { restoreRaw, type StoredPoint, storedPoints } from "./restore-disk.js";
import { mountSmall } from "./small-file-system.js";

export interface BackupJson {
  readonly id: string;
  readonly level: string;
  readonly checkpoint: string | null;
  readonly retiredCheckpoints: readonly string[];
  readonly warnings: readonly string[];
  readonly disks: readonly {
    readonly name: string;
    readonly mode: string;
    readonly parent: string | null;
    readonly reason?: string;
    readonly dirtyBytes: number;
  }[];
}

/** A lab with a repository and a folder for scratch files. */
export class BackupLab implements AsyncDisposable {
  readonly lab: Lab;
  readonly folder: string;
  /** A folder; a test may name an address instead. */
  repo: string;
  /** The folder where QEMU's folders are made; nothing must be left in it. */
  readonly scratch: string;
  /** How `nbdpull backup` is started. */
  start: StartOptions = {};

  readonly #mounted: AsyncDisposable | undefined;

  private constructor(lab: Lab, folder: string, scratch: string, mounted: AsyncDisposable | undefined) {
    this.#mounted = mounted;
    this.lab = lab;
    this.folder = folder;
    this.repo = join(folder, "repo");
    this.scratch = scratch;
  }

  /** @param scratchBytes the size of a file system for scratch files; by default they have no limit */
  static async start(options: LabOptions = {}, scratchBytes?: number): Promise<BackupLab> {
    const scratch = await mkdtemp("/var/tmp/nbdpull-test-");
    // Mount before QEMU starts: if mounts aren't shared, it does not see later ones.
    const mounted = scratchBytes === undefined ? undefined : await mountSmall(scratch, scratchBytes);
    const lab = await Lab.start(options);
    return new BackupLab(lab, await mkdtemp(join(tmpdir(), "nbdpull-backup-")), scratch, mounted);
  }

  /** Begins to remove everything; see {@link Lab}. */
  async [Symbol.asyncDispose](): Promise<void> {
    removeMeanwhile(async () => {
      await this.lab.destroy();
      await this.#mounted?.[Symbol.asyncDispose]();
      await rm(this.folder, { recursive: true, force: true });
      await rm(this.scratch, { recursive: true, force: true });
    });
  }

  arguments(...more: readonly string[]): string[] {
    const to = ["--to", this.repo, "--create"];
    return ["backup", this.lab.domain, ...to, "--scratch", this.scratch, "--json", ...more];
  }

  run(...more: readonly string[]): Promise<Ran> {
    const args = this.arguments(...more);
    return runNbdpull(args, this.start);
  }

  /** A backup that has to succeed. */
  async take(...more: readonly string[]): Promise<BackupJson> {
    const ran = await this.run(...more);
    expectExit(ran, 0);
    return ofCalmLibvirt(ran.json() as BackupJson);
  }

  /**
   * Starts a backup that takes 16 seconds for each MiB, and waits until it stores data. It is meant to be
   * ended, or takes another `--limit-rate`. It compares one cluster with its base: the usual 64 of each disk
   * would take two minutes at that rate.
   */
  async startSlowly(...more: readonly string[]): Promise<Running> {
    const run = startNbdpull(
      this.arguments("--limit-rate", "64K", "--request-size", "64K", "--prove-base", "1", ...more),
      this.start,
    );
    await expect.poll(() => this.#isStoring(1)).toBe(true);
    // Its job has begun. Each question to libvirt is a process, so it is not asked again and again.
    // libvirt has none for a domain that is off.
    const job = await virsh("backup-dumpxml", this.lab.domain).catch(() => "");
    const exported = job.match(/ backup='yes'/g)?.length ?? 1;
    await expect.poll(() => this.#isStoring(exported)).toBe(true);
    return run;
  }

  /**
   * Whether a point that isn't finished has the images of all these disks: their exports are open. A job that
   * is ended while one is being opened takes the guest of QEMU 7.2.22 with it.
   */
  async #isStoring(exported: number): Promise<boolean> {
    const partial = (await this.beside()).filter((name) => name.endsWith(".partial"));
    const files = partial.map((name) => readdir(join(this.repo, this.lab.domain, name)).catch(() => []));
    const images = (await Promise.all(files))
      .flat()
      .flatMap((name) => /^\.?(vd[ab])\./.exec(name)?.[1] ?? []);
    return new Set(images).size >= exported;
  }

  /** The domain's points, oldest first, as their manifests have them; none if there is no repository. */
  points(): Promise<StoredPoint[]> {
    return storedPoints(this.repo, this.lab.domain);
  }

  async checkpoints(): Promise<string[]> {
    const output = await virsh("checkpoint-list", this.lab.domain, "--name");
    return output.split("\n").filter((line) => line !== "");
  }

  /** Everything in the domain's folder except points. */
  async beside(): Promise<string[]> {
    const names = await readdir(join(this.repo, this.lab.domain)).catch(() => []);
    return names.filter((name) => !/^\d{8}T/.test(name));
  }

  /** The files of the point that is being made. */
  async inPartial(): Promise<string[]> {
    const partial = (await this.beside()).find((name) => name.endsWith(".partial"));
    return partial === undefined ? [] : await readdir(join(this.repo, this.lab.domain, partial));
  }

  /** Expects no job, scratch file, folder or partial point to be left. */
  async expectNothingLeft(): Promise<void> {
    await expect(virsh("backup-dumpxml", this.lab.domain)).rejects.toThrow(
      /no domain backup job|not running/,
    );
    expect(await readdir(this.scratch)).toEqual([]);
    expect(await this.beside()).toEqual([]);
  }

  /** Copies of the current disks, made by a job of the lab while the guest does not write. */
  async copyNow(): Promise<Record<LabDisk, string>> {
    await using job = await this.lab.beginBackup();
    return { vda: await job.referenceCopy("vda"), vdb: await job.referenceCopy("vdb") };
  }

  /** Expects the restored point to equal the copies. */
  async expectPoint(id: string, copies: Partial<Record<LabDisk, string>>): Promise<void> {
    const target = join(this.folder, `restored-${id}`);
    await restoreRaw(this.repo, this.lab.domain, id, target);
    for (const disk of LAB_DISKS) {
      const copy = copies[disk];
      if (copy === undefined) continue;
      await qemuImg("compare", "-f", "raw", "-F", "raw", join(target, `${disk}.raw`), copy);
    }
    await rm(target, { recursive: true });
  }
}

/** What is told where libvirt is slow, since another test's domain keeps it busy: that is no test's business. */
const OF_A_BUSY_LIBVIRT =
  /was cancelled and takes long to end|^libvirt is busy with|^libvirt is asked for up to/;

/** The result of a command, without its warnings of a libvirt that was slow. */
export function ofCalmLibvirt<Json extends { readonly warnings: readonly string[] }>(json: Json): Json {
  return { ...json, warnings: json.warnings.filter((warning) => !OF_A_BUSY_LIBVIRT.test(warning)) };
}

export function expectExit(ran: Ran, code: number): void {
  expect({ code: ran.code, stderr: ran.code === code ? "" : ran.stderr }).toEqual({ code, stderr: "" });
}
