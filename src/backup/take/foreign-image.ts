import { realpath, stat } from "node:fs/promises";
import type { Stretch } from "../../nbd/index.js";
import type { OnDamage } from "../base/damage.js";
import { BackupError, DamageError, PreconditionError, UsageError } from "../base/errors.js";
import { shellWord } from "../base/shell-word.js";
import type { LayerRun } from "../chain/agreed-runs.js";
import { ChainSource } from "../chain/chain-source.js";
import type { ReadableLayer } from "../chain/overlay.js";
import type { ByteSource } from "../export/open-export.js";
import { isMissing } from "../host/durable-files.js";
import { isWrittenByQemu } from "../host/qemu-locks.js";
import type { ImageFormat, ImageReader } from "../image/image.js";
import { ImageFile } from "../image/image-file.js";
import { RawReader } from "../image/raw-reader.js";
import type { DiskSource } from "../pull/pull-image.js";
import { INCOMPATIBLE } from "../qcow2/header.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import { singlyUsed } from "../qcow2/single-use.js";

/** Facts that show whether a file has changed. */
interface FileState {
  readonly device: bigint;
  readonly inode: bigint;
  readonly size: bigint;
  readonly modified: bigint;
}

/** The cluster size used for raw images, which have none themselves. */
const RAW_CLUSTER_SIZE = 64 * 1024;
const QCOW2_MAGIC = Buffer.from("QFI\xfb", "latin1");

/** A full image that another program made, open for reading only. The caller closes it. */
export class ForeignImage implements DiskSource, AsyncDisposable {
  readonly path: string;
  readonly virtualSize: number;
  readonly complete = true;
  readonly readThrough = 0;
  /** Warnings for the user about the image. */
  readonly warnings: readonly string[];
  readonly #image: ImageReader;
  readonly #state: FileState;
  #requests = 0;

  private constructor(path: string, image: ImageReader, state: FileState) {
    this.path = path;
    this.virtualSize = image.geometry.virtualSize;
    this.warnings = warningsOf(path, image);
    this.#image = image;
    this.#state = state;
  }

  /**
   * @param format never probed: a guest can write anything to the beginning of its raw disk
   * @param asked whether the user named the format
   * @throws {PreconditionError} the image does not exist, a QEMU has it open for writing, or it has a backing
   *   file
   * @throws {UsageError} it is not a plain file, or it is a raw image that looks like qcow2 and `asked` is
   *   false
   * @throws {DamageError} the image is damaged
   * @throws {BackupError} the image uses a feature that this program can't read
   */
  static async open(path: string, format: ImageFormat, asked: boolean): Promise<ForeignImage> {
    const state = await stateOf(path);
    await refuseInUse(path);
    // The user has named it, perhaps by a link; images in a repository are opened without following any.
    const file = await realpath(path);
    if (format === "raw") {
      if (!asked && (await looksLikeQcow2(file))) {
        const message = `${path} begins like a qcow2 image, but its name does not end in .qcow2: say which it is with --image-format qcow2, or --image-format raw`;
        throw new UsageError("E_IMAGE_FORMAT", message, { details: { path } });
      }
      const geometry = { virtualSize: Number(state.size), clusterSize: RAW_CLUSTER_SIZE };
      return new ForeignImage(path, await RawReader.open(file, { geometry }), state);
    }
    const image = await Qcow2Reader.open(file);
    const { backingFile } = image.header;
    if (backingFile === undefined) return new ForeignImage(path, image, state);
    await image.close();
    const message = `${path} has a backing file (${backingFile}), so it is no full image: flatten it first, with qemu-img convert -O qcow2 ${shellWord(path)} FLAT.qcow2`;
    throw new PreconditionError("E_HAS_BACKING", message, { details: { path, backingFile } });
  }

  /** Number of stretches that were read. */
  get requests(): number {
    return this.#requests;
  }

  begin(): ReturnType<DiskSource["begin"]> {
    const layer = layerOf(this.#image);
    const source = new ChainSource([layer], this.#image.geometry, () => failOnDamage);
    const bytes: ByteSource = {
      readPieces: (stretches: readonly Stretch[], sink, options) => {
        this.#requests += stretches.length;
        return source.readPieces(stretches, sink, options);
      },
    };
    return { extents: source.extents(), bytes };
  }

  widen(): void {}

  /** @throws {BackupError} the file changed since it was opened, or a QEMU has it open for writing */
  async assertUnchanged(): Promise<void> {
    await refuseInUse(this.path);
    const now = await stateOf(this.path);
    const same = (Object.keys(now) as (keyof FileState)[]).every((key) => now[key] === this.#state[key]);
    if (same) return;
    const message = `${this.path} was changed while it was read: nothing was stored. Import an image that nobody writes to`;
    throw new BackupError("E_IMAGE_CHANGED", message, { details: { path: this.path } });
  }

  close(): Promise<void> {
    return this.#image.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

async function stateOf(path: string): Promise<FileState> {
  const found = await stat(path, { bigint: true }).catch((cause: unknown) => {
    if (!isMissing(cause)) throw cause;
    throw new PreconditionError("E_NO_IMAGE", `the image ${path} is not there`, { cause, details: { path } });
  });
  if (!found.isFile()) {
    const message = `${path} is not a plain file: import an image file (qemu-img convert makes one of anything)`;
    throw new UsageError("E_IMAGE_KIND", message, { details: { path } });
  }
  return { device: found.dev, inode: found.ino, size: found.size, modified: found.mtimeNs };
}

async function refuseInUse(path: string): Promise<void> {
  if (!(await isWrittenByQemu(path))) return;
  const message = `a QEMU has ${path} open for writing (does a guest run on it?), so its content is not of one moment: nothing was stored. Shut the guest down, or import a copy that nobody writes to`;
  throw new PreconditionError("E_IMAGE_IN_USE", message, { details: { path } });
}

/** Used only to refuse a doubtful image, never to choose its format. */
async function looksLikeQcow2(path: string): Promise<boolean> {
  const file = await ImageFile.open(path);
  try {
    const magic = Buffer.alloc(QCOW2_MAGIC.length);
    await file.read(magic, 0);
    return magic.equals(QCOW2_MAGIC);
  } finally {
    await file.close();
  }
}

function warningsOf(path: string, image: ImageReader): readonly string[] {
  if (!(image instanceof Qcow2Reader)) return [];
  const { incompatible, snapshots } = image.header;
  return [
    ...((incompatible & INCOMPATIBLE.DIRTY) === 0
      ? []
      : [`${path} was not closed properly, or is in use (dirty bit): check that no guest runs on it`]),
    ...(snapshots === 0
      ? []
      : [
          `${path} has ${snapshots} internal snapshots: only its active state is imported. For that of a snapshot: qemu-img convert -l SNAPSHOT -O qcow2 ${shellWord(path)} SNAPSHOT.qcow2, and import that`,
        ]),
  ];
}

function layerOf(image: ImageReader): ReadableLayer {
  const { clusterSize } = image.geometry;
  return {
    geometry: image.geometry,
    complete: true,
    async *runs(): AsyncGenerator<LayerRun> {
      const runs = image instanceof Qcow2Reader ? singlyUsed(image) : image.runs();
      for await (const run of runs) yield { ...run, digests: undefined };
    },
    async read(run: LayerRun, offset: number, target: Buffer): Promise<void> {
      if (run.kind === "zero") throw new RangeError("a zero run has no bytes");
      await image.readHost(run.hostOffset + offset - run.cluster * clusterSize, target);
    },
  };
}

const failOnDamage: OnDamage = ({ message, guestOffset }) => {
  throw new DamageError("E_DAMAGED", message, { details: { guestOffset } });
};
