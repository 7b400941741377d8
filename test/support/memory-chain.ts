import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DigestAlgorithm } from "../../src/backup/digest/algorithms.js";
import type { ImageFormat } from "../../src/backup/image/image.js";
import type { CompressionMethod } from "../../src/backup/qcow2/can-compress.js";
import type { Manifest } from "../../src/backup/repository/manifest.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type TakenPoint, takePoint } from "../../src/backup/take/take-point.js";
import { MemoryDisk, NbdServer, parseNbdUri, type ServedExport } from "../../src/nbd/index.js";
import { qemuImg } from "./qemu-nbd.js";

const BITMAP = "since";
/** Some tests let others write to the repository, and take points all the same. */
const TRUSTED = { trusted: true };

function newFolder(): Promise<string> {
  return mkdtemp(join(tmpdir(), "nbdpull-chain-"));
}

/** A disk in memory behind the built-in server, and a repository for its points. */
export class MemoryChain implements AsyncDisposable {
  readonly folder: string;
  readonly disk: MemoryDisk;
  readonly repository: Repository;
  readonly points: Manifest[];
  /** The content of each point, by ID. */
  readonly contents: Map<string, ServedExport>;
  static readonly domain = "guest";
  readonly #bytes = new Map<string, Buffer>();
  readonly #server: NbdServer;
  /** What the server exports. */
  readonly #shown: { frozen: ServedExport };

  private constructor(
    folder: string,
    disk: MemoryDisk,
    repository: Repository,
    server: NbdServer,
    shown: { frozen: ServedExport },
    { points, contents }: Pick<MemoryChain, "points" | "contents">,
  ) {
    this.points = [...points];
    this.contents = new Map(contents);
    this.folder = folder;
    this.disk = disk;
    this.repository = repository;
    this.#server = server;
    this.#shown = shown;
  }

  /**
   * @param path of the repository; default: in a folder of its own
   * @param pageSize of the disk: of parts of a page it doesn't tell that they are zero
   */
  static async start(size: number, path?: string, pageSize = 64 * 1024): Promise<MemoryChain> {
    const folder = await newFolder();
    const repository = await Repository.openOrCreate(path ?? join(folder, "repo"), TRUSTED);
    const nothing = { points: [], contents: new Map<string, ServedExport>() };
    return await MemoryChain.#around(new MemoryDisk({ size, pageSize }), folder, repository, nothing);
  }

  /** Copies the points to a new folder, which is faster than taking them again; the disk is shared. */
  async copy(): Promise<MemoryChain> {
    const folder = await newFolder();
    await cp(this.repository.path, join(folder, "repo"), { recursive: true, preserveTimestamps: true });
    return await MemoryChain.#around(
      this.disk,
      folder,
      await Repository.open(join(folder, "repo"), TRUSTED),
      this,
    );
  }

  static async #around(
    disk: MemoryDisk,
    folder: string,
    repository: Repository,
    taken: Pick<MemoryChain, "points" | "contents">,
  ): Promise<MemoryChain> {
    const shown = { frozen: disk.freeze() };
    const server = await NbdServer.listen({
      exports: () => shown.frozen,
      address: { path: join(folder, "nbd.sock") },
    });
    return new MemoryChain(folder, disk, repository, server, shown, taken);
  }

  get uri(): string {
    return this.#server.uri("vda");
  }

  /** Freezes the disk: from now on the server shows its current content and bitmaps. */
  show(): ServedExport {
    this.#shown.frozen = this.disk.freeze();
    return this.#shown.frozen;
  }

  /** Freezes the disk and takes a point: full the first time, then an increment on the newest one. */
  async take(
    options: {
      readonly format?: ImageFormat;
      readonly digests?: DigestAlgorithm | undefined;
      readonly compress?: CompressionMethod;
      readonly full?: boolean;
      /** Default: that of the class, of no known UUID. */
      readonly domain?: Manifest["domain"];
      readonly onWarning?: (message: string) => void;
      /** The granularity of the next increment's bitmap; default 64 KiB. */
      readonly granularity?: number;
      readonly confirm?: () => Promise<void>;
    } = {},
  ): Promise<TakenPoint> {
    const frozen = this.show();
    const parent = options.full ? undefined : this.points.at(-1);
    const taken = await takePoint({
      repository: this.repository,
      domain: options.domain ?? { name: MemoryChain.domain, uuid: null },
      disks: [
        { name: "vda", address: parseNbdUri(this.uri), increment: parent && { bitmap: BITMAP, parent } },
      ],
      checkpoint: null,
      format: options.format ?? "qcow2",
      digests: "digests" in options ? options.digests : "xxh64",
      compress: options.compress,
      sync: false,
      tool: "test",
      connect: {},
      confirm: options.confirm ?? (async () => undefined),
      onWarning: options.onWarning,
    });
    this.points.push(taken.manifest);
    this.contents.set(taken.manifest.id, frozen);
    this.disk.startBitmap(BITMAP, options.granularity);
    return taken;
  }

  /** The bytes of a point. They are read once: tests compare them again and again. */
  async contentOf(id: string): Promise<Buffer> {
    const known = this.#bytes.get(id);
    if (known !== undefined) return known;
    const frozen = this.contents.get(id);
    if (!frozen) throw new Error(`there is no point ${id}`);
    const bytes = Buffer.from(await frozen.read(0, frozen.size));
    this.#bytes.set(id, bytes);
    return bytes;
  }

  /** The path of a raw file that has the bytes of a point. */
  async rawFile(id: string): Promise<string> {
    const path = join(this.folder, `${id}.raw`);
    await writeFile(path, await this.contentOf(id));
    return path;
  }

  /** Holds the images of points in the folder of a repository against what the disk was, by stock QEMU. */
  async expectStock(repository: string, ids = this.points.map(({ id }) => id)): Promise<void> {
    for (const id of ids) {
      const image = join(repository, MemoryChain.domain, id, "vda.qcow2");
      await qemuImg("check", image);
      await qemuImg("compare", "-f", "qcow2", "-F", "raw", image, await this.rawFile(id));
    }
  }

  /** Changes the manifest of a point, as another version or an older state of it would have it. */
  async rewrite(id: string, changes: Readonly<Record<string, unknown>>): Promise<void> {
    const path = join(this.repository.pointFolder(MemoryChain.domain, id), "point.json");
    const manifest: object = JSON.parse(await readFile(path, "utf8"));
    await writeFile(path, JSON.stringify({ ...manifest, ...changes }));
  }

  /** The path of a job's XML whose exports, one of each name, all show the disk. */
  async jobXml(...disks: readonly string[]): Promise<string> {
    const path = join(this.folder, "job.xml");
    const list = disks.map(
      (name) => `<disk name='${name}' backup='yes' type='file' backupmode='full' exportname='${name}'/>`,
    );
    const server = `<server transport='unix' socket='${join(this.folder, "nbd.sock")}'/>`;
    await writeFile(
      path,
      `<domainbackup mode='pull'>${server}<disks>${list.join("")}</disks></domainbackup>`,
    );
    return path;
  }

  /** The path of a file of a point, by the number of the point; by default of its image. */
  file(number: number, name = "vda.qcow2"): string {
    const point = this.points[number];
    if (!point) throw new Error(`there is no point ${number}`);
    return this.pathOf(point, name);
  }

  pathOf(point: Manifest, file: string): string {
    return join(this.repository.pointFolder(MemoryChain.domain, point.id), file);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.close();
    await rm(this.folder, { recursive: true, force: true });
  }
}
