/**
 * Chains of points in a repository, taken with our own engine from qemu-nbd as increments of a changing disk.
 */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  type CompressionMethod,
  type DigestAlgorithm,
  type Manifest,
  Repository,
  takePoint,
} from "../src/backup/index.js";
import { parseNbdUri } from "../src/nbd/index.js";
import { evenly, scattered } from "./extents.js";
import { type Content, makeRaw, qemuImg } from "./images.js";
import { addBitmap, BITMAP, convert, type Disk, type Inputs, writeOnto } from "./inputs.js";
import { scaled } from "./scale.js";
import { serveByQemuNbd } from "./servers.js";
import type { Scene, Stage, Stored } from "./workload.js";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

const DOMAIN = "bench";
const DISK = "vda";
const INCREMENTS = 10;
const CHANGE_BYTES = 128 * KiB;

export interface ChainOptions {
  readonly digests: DigestAlgorithm;
  readonly content?: Content;
  readonly compress?: CompressionMethod;
}

interface Chain extends Disk {
  readonly stored: Stored;
}

/** The scene of a workload that is about what is stored: nothing is served. */
export async function storedScene({ inputs, scale }: Stage, options: ChainOptions): Promise<Scene> {
  const { stored } = await chain(inputs, scale, options);
  return { sources: [], stored, [Symbol.asyncDispose]: async () => undefined };
}

/**
 * A full point with 1 GiB of data in a disk of 2 GiB, and ten increments of 64 MiB each in pieces of 128 KiB.
 */
function chain(inputs: Inputs, scale: number, options: ChainOptions): Promise<Chain> {
  const { content = "random", compress, digests } = options;
  return inputs.make(["chain", content, digests, compress ?? "plain"].join("-"), async (folder) => {
    const virtualSize = scaled(2 * GiB, scale, 32 * MiB);
    const half = evenly(virtualSize, virtualSize / (8 * MiB), 4 * MiB);
    const raw = await makeRaw(join(folder, "disk.raw"), virtualSize, half, { content });
    const disk: Disk = { image: await convert(raw, folder), virtualSize };
    await addBitmap(disk.image, 64 * KiB);
    const repository = await Repository.openOrCreate(join(folder, "repository"));
    const points = [await take(repository, disk, folder, undefined, options)];
    for (let generation = 2; generation <= INCREMENTS + 1; generation += 1) {
      await change(disk, folder, scaled(512, scale, 1), { generation, content });
      points.push(await take(repository, disk, folder, points.at(-1), options));
    }
    return { ...disk, stored: storedOf(repository, points, disk) };
  });
}

async function change(
  { image, virtualSize }: Disk,
  folder: string,
  count: number,
  options: { readonly generation: number; readonly content: Content },
): Promise<void> {
  await qemuImg("bitmap", "--clear", image.path, BITMAP);
  const places = scattered(virtualSize, count, CHANGE_BYTES, options.generation);
  const changes = await makeRaw(join(folder, "changes.raw"), virtualSize, places, options);
  await writeOnto(image, changes);
  await rm(changes.path);
}

async function take(
  repository: Repository,
  disk: Disk,
  folder: string,
  parent: Manifest | undefined,
  { digests, compress }: ChainOptions,
): Promise<Manifest> {
  const served = parent === undefined ? disk : { ...disk, dirty: disk.image };
  await using scene = await serveByQemuNbd(served, { folder });
  const uri = scene.sources[0]?.uri ?? "";
  const { manifest } = await takePoint({
    repository,
    domain: { name: DOMAIN, uuid: null },
    disks: [{ name: DISK, address: parseNbdUri(uri), increment: parent && { bitmap: BITMAP, parent } }],
    checkpoint: null,
    format: "qcow2",
    digests,
    compress,
    sync: false,
    tool: "bench",
    connect: {},
    confirm: async () => undefined,
  });
  return manifest;
}

function storedOf(repository: Repository, points: readonly Manifest[], disk: Disk): Stored {
  const images = points.map((point) => ({
    path: join(repository.pointFolder(DOMAIN, point.id), `${DISK}.qcow2`),
    format: "qcow2" as const,
  }));
  return { repository: repository.path, domain: DOMAIN, disk: DISK, images, expected: disk.image };
}
