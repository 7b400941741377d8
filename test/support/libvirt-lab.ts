/**
 * A lab for backups: a real libvirt domain with two disks and no operating system. The test makes the guest's
 * writes from outside, so that it knows every byte of every point in time.
 *
 *     await describeWithLibvirt("attach", () => {
 *       it("stores the point", async () => {
 *         await using lab = await Lab.start();
 *         await lab.write("vda", 0, 1 << 20, 0x11);
 *         await using backup = await lab.beginBackup({ checkpoint: "cp1" });
 *         await lab.write("vda", 0, 65536, 0x22);                 // no longer in the point
 *         const reference = await backup.referenceCopy("vda");    // the point, as QEMU reads it
 *         …
 */

import { randomBytes, randomUUID } from "node:crypto";
import { mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { afterAll } from "vitest";
import { freePort } from "../../bench/free-ports.js";
import {
  ensureLibvirt,
  labFolder,
  labLog,
  labsRemoved,
  removeLab,
  removeMeanwhile,
} from "./libvirt-daemon.js";
import {
  type BeginOptions,
  backupXml,
  checkpointXml,
  domainXml,
  imagePath,
  LAB_DISKS,
  type LabDisk,
  type LabFacts,
  type LabFormat,
  type LabServer,
  type PerDisk,
} from "./libvirt-lab-xml.js";
import { createImage, qemuImg } from "./qemu-nbd.js";
import { describeUnless } from "./tools.js";

export { LAB_DISKS, type LabDisk } from "./libvirt-lab-xml.js";

/**
 * `describe` for tests that need a {@link Lab}; if there can't be one, they are skipped by name. It ends when
 * all labs are removed that were disposed of, and fails if one couldn't be.
 */
export async function describeWithLibvirt(title: string, body: () => void): Promise<void> {
  describeUnless(await ensureLibvirt(), title, () => {
    // Hooks that were registered first run last: at the end no lab is left.
    afterAll(labsRemoved);
    body();
  });
}

export interface LabOptions {
  /**
   * In bytes. Default: 64 MiB for vda; for vdb 48 MiB and seven sectors, which is no multiple of a cluster.
   */
  readonly sizes?: Partial<PerDisk<number>>;
  /** Default: qcow2. A raw disk can't have bitmaps, so checkpoints exclude it. */
  readonly formats?: Partial<PerDisk<LabFormat>>;
  /** In bytes, for qcow2. Default: 64 KiB. */
  readonly clusterSizes?: Partial<PerDisk<number>>;
  /**
   * Runs QEMU as libvirt's default user instead of root. It then can't create the sockets of the lab's own
   * jobs.
   */
  readonly unprivileged?: boolean;
}

/** One running domain and its folder. Disposing leaves nothing behind. */
export class Lab implements LabFacts, AsyncDisposable {
  readonly domain: string;
  readonly uuid: string;
  /** The folder of images, scratch files and sockets. */
  readonly folder: string;
  readonly sizes: PerDisk<number>;
  readonly formats: PerDisk<LabFormat>;
  readonly unprivileged: boolean;
  #jobs = 0;
  /** The tail of the queue of guest writes. */
  #writes: Promise<unknown> = Promise.resolve();

  private constructor(options: LabOptions) {
    this.domain = `nbdpull-lab-${process.pid}-${randomBytes(4).toString("hex")}`;
    this.uuid = randomUUID();
    this.folder = labFolder(this.domain);
    this.sizes = { vda: 64 * 1024 ** 2, vdb: 48 * 1024 ** 2 + 7 * 512, ...options.sizes };
    this.formats = { vda: "qcow2", vdb: "qcow2", ...options.formats };
    this.unprivileged = options.unprivileged ?? false;
  }

  /** Creates the images, defines the domain and starts it. */
  static async start(options: LabOptions = {}): Promise<Lab> {
    const lab = new Lab(options);
    await mkdir(lab.folder);
    try {
      for (const disk of LAB_DISKS) {
        const format = lab.formats[disk];
        const clusterSize = options.clusterSizes?.[disk] ?? 65536;
        const settings = format === "qcow2" ? { cluster_size: String(clusterSize) } : {};
        await createImage(lab.image(disk), { format, size: lab.sizes[disk], options: settings });
      }
      await virsh("define", await lab.#file("domain.xml", domainXml(lab)));
      await lab.powerOn();
      return lab;
    } catch (error) {
      await lab.destroy();
      throw error;
    }
  }

  /** The image file of a guest's disk. While QEMU has it open, its content can be stale. */
  image(disk: LabDisk): string {
    return imagePath(this, disk);
  }

  /** The guest writes `length` bytes of value `pattern`. */
  write(disk: LabDisk, offset: number, length: number, pattern: number): Promise<void> {
    return this.#guestIo(disk, `write -P ${pattern} ${offset} ${length}`);
  }

  /** The guest writes zeroes; with `unmap` the image may give the space back. */
  writeZeroes(
    disk: LabDisk,
    offset: number,
    length: number,
    options: { readonly unmap?: boolean } = {},
  ): Promise<void> {
    return this.#guestIo(disk, `write -z ${options.unmap === true ? "-u " : ""}${offset} ${length}`);
  }

  /** The guest writes what a file has, from the beginning of its disk. */
  copyInto(disk: LabDisk, file: string): Promise<void> {
    return stat(file).then(({ size }) => this.#guestIo(disk, `write -s ${file} 0 ${size}`));
  }

  discard(disk: LabDisk, offset: number, length: number): Promise<void> {
    return this.#guestIo(disk, `discard ${offset} ${length}`);
  }

  /** Begins a pull-mode job; with `checkpoint`, creates that in the same transaction. */
  async beginBackup(options: BeginOptions = {}): Promise<LabBackup> {
    this.#jobs += 1;
    const server: LabServer =
      options.transport === "tcp"
        ? {
            transport: "tcp",
            host: options.tls === true ? "localhost" : "127.0.0.1",
            port: await freePort(),
            tls: options.tls === true,
          }
        : { transport: "unix", socket: join(this.folder, `nbd-${this.#jobs}.sock`) };
    const files = [await this.#file("backup.xml", backupXml(this, this.#jobs, server, options))];
    if (options.checkpoint !== undefined) {
      files.push(
        await this.#file(
          "checkpoint.xml",
          checkpointXml(this, options.checkpoint, options.disks ?? LAB_DISKS),
        ),
      );
    }
    await virsh("backup-begin", this.domain, ...files);
    return new LabBackup(this, await virsh("backup-dumpxml", this.domain), server, options);
  }

  /** Creates a checkpoint on its own: libvirt allows that at any time, even during a job. */
  async createCheckpoint(name: string, disks: readonly LabDisk[] = LAB_DISKS): Promise<void> {
    const file = await this.#file("checkpoint.xml", checkpointXml(this, name, disks));
    await virsh("checkpoint-create", this.domain, file);
  }

  /** Deletes a checkpoint; with `metadataOnly`, libvirt forgets it and the bitmaps stay in the images. */
  async deleteCheckpoint(name: string, options: { readonly metadataOnly?: boolean } = {}): Promise<void> {
    await virsh(
      "checkpoint-delete",
      this.domain,
      name,
      ...(options.metadataOnly === true ? ["--metadata"] : []),
    );
  }

  /** Cancels any running job, and waits until there is none. */
  async abortJob(): Promise<void> {
    await virsh("domjobabort", this.domain).catch(() => undefined);
    const deadline = Date.now() + 120_000;
    while (await this.#hasJob()) {
      if (Date.now() > deadline) throw new Error(`the job of ${this.domain} does not end`);
      // Each question is a process.
      await sleep(50);
    }
  }

  #hasJob(): Promise<boolean> {
    return virsh("backup-dumpxml", this.domain).then(
      () => true,
      () => false,
    );
  }

  async powerOn(): Promise<void> {
    await virsh("start", this.domain);
  }

  /** Pulls the plug: QEMU flushes its images and ends, together with any job. */
  async powerOff(): Promise<void> {
    await this.#writes;
    for (const deadline = Date.now() + 120_000; ; ) {
      try {
        await virsh("destroy", "--graceful", this.domain);
        return;
      } catch (error) {
        // libvirt waits 15 seconds for QEMU, which may need longer on a busy machine.
        if (/domain is not running/.test(String(error))) return;
        if (Date.now() > deadline) throw error;
      }
    }
  }

  /** Changes the domain's definition while it is off. */
  async redefine(edit: (xml: string) => string): Promise<void> {
    const xml = edit(await virsh("dumpxml", "--inactive", this.domain));
    await virsh("define", await this.#file("domain.xml", xml));
  }

  /** Kills QEMU, which breaks the bitmaps that it had in memory. */
  async crash(): Promise<void> {
    await this.#writes;
    process.kill(Number(await readFile(`/run/libvirt/qemu/${this.domain}.pid`, "utf8")), "SIGKILL");
    while ((await virsh("domstate", this.domain)).trim() !== "shut off") await sleep(100);
  }

  /** Removes the domain, its checkpoints, its log and the folder; may be called more than once. */
  async destroy(): Promise<void> {
    await removeLab(this.domain);
  }

  /** Begins what {@link destroy} does; it has ended at the end of the `describe`. */
  async [Symbol.asyncDispose](): Promise<void> {
    removeMeanwhile(() => this.destroy());
  }

  #guestIo(disk: LabDisk, command: string): Promise<void> {
    const done = this.#writes.then(() => monitorIo(this.domain, disk, command));
    // The caller of this write gets its error; the next write runs anyway.
    this.#writes = done.catch(() => undefined);
    return done;
  }

  async #file(name: string, content: string): Promise<string> {
    const path = join(this.folder, name);
    await writeFile(path, content);
    return path;
  }
}

/** A job that a lab began. Disposing ends it. */
export class LabBackup implements AsyncDisposable {
  /** The output of `virsh backup-dumpxml` after the job had begun. */
  readonly xml: string;
  readonly server: LabServer;
  readonly #lab: Lab;
  readonly #options: BeginOptions;
  #copies = 0;

  constructor(lab: Lab, xml: string, server: LabServer, options: BeginOptions) {
    this.#lab = lab;
    this.xml = xml;
    this.server = server;
    this.#options = options;
  }

  /** The NBD URI of a disk's export. */
  uri(disk: LabDisk): string {
    const name = encodeURIComponent(this.#options.perDisk?.[disk]?.exportName ?? disk);
    return this.server.transport === "unix"
      ? `nbd+unix:///${name}?socket=${encodeURIComponent(this.server.socket)}`
      : `nbd://${this.server.host}:${this.server.port}/${name}`;
  }

  /** Copies the point in time of a disk's export to a raw file with qemu-img; resolves to the path. */
  async referenceCopy(disk: LabDisk): Promise<string> {
    this.#copies += 1;
    const path = join(
      this.#lab.folder,
      `reference-${disk}-${this.#copies}-${randomBytes(4).toString("hex")}.raw`,
    );
    await qemuImg("convert", "-f", "raw", "-O", "raw", this.uri(disk), path);
    return path;
  }

  end(): Promise<void> {
    return this.#lab.abortJob();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.end();
  }
}

/** Runs virsh on the system's libvirt and returns its standard output. */
export async function virsh(...args: readonly string[]): Promise<string> {
  return (await execa("virsh", ["-c", "qemu:///system", ...args], { env: { LC_ALL: "C" } })).stdout;
}

/** The state of a domain with its reason, as virsh tells it; `unknown`: there is no such domain. */
export async function stateOf(domain: string): Promise<string> {
  return (await virsh("domstate", "--reason", domain).catch(() => "unknown")).trim();
}

/**
 * Runs a qemu-io command inside QEMU, on a disk of the guest. The monitor does not return the outcome: QEMU
 * prints it on its standard output, so it is read from the domain's log.
 */
async function monitorIo(domain: string, disk: LabDisk, command: string): Promise<void> {
  const log = labLog(domain);
  const before = (await stat(log)).size;
  const device = `/machine/peripheral/virtio-disk${LAB_DISKS.indexOf(disk)}/virtio-backend`;
  const reply = await virsh("qemu-monitor-command", domain, "--hmp", `qemu-io -d ${device} "${command}"`);
  const deadline = Date.now() + 120_000;
  for (;;) {
    const said = (await readFile(log)).subarray(before).toString();
    const done = /^(?:wrote|discard) (\d+)\/(\d+) bytes/m.exec(said);
    if (done !== null && done[1] === done[2]) return;
    if (done !== null || /failed|not found|invalid/i.test(said + reply) || Date.now() > deadline) {
      throw new Error(`${domain} ${disk} "${command}": ${reply.trim() || said.trim() || "no answer"}`);
    }
    await sleep(5);
  }
}
