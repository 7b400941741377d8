import { closeAll } from "../base/in-parallel.js";
import { openChain } from "../chain/chain.js";
import { failOnDamage, type Layer } from "../chain/layer.js";
import type { HeldFolder } from "../host/held-folder.js";
import { sha256OfFile } from "../host/plain-files.js";
import { ALL_SUBCLUSTERS, dataBytesOf, type Geometry } from "../image/image.js";
import type { Guard } from "../image/image-file.js";
import type { NewPlace } from "../image/new-file.js";
import type { Backing } from "../qcow2/finish.js";
import { Qcow2Reader } from "../qcow2/reader.js";
import type { HolderMark } from "../repository/domain-lock.js";
import { type DiskManifest, diskOf, imageName, PRUNED_BELOW } from "../repository/manifest.js";
import type { StagedNames } from "../repository/prune-journal.js";
import { EventLoopTurn } from "../threads/event-loop-turn.js";
import { CopyList } from "./copy-list.js";
import type { DiskChain } from "./disk-chain.js";
import type { MergeMethod } from "./merge-method.js";
import type { MergeTarget, MixedCluster } from "./merge-target.js";
import type { MergeThreads } from "./merge-threads.js";
import { type MergedPart, masksOf, mergedParts, type Origin, originOf } from "./merge-walk.js";
import { MergedDigests, mergedAlgorithm } from "./merged-digests.js";
import { Qcow2Target } from "./qcow2-merge-target.js";
import { NewRawTarget, RawInPlaceTarget } from "./raw-merge-target.js";
import { TakenClusters } from "./taken-clusters.js";

interface WalkOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called with the bytes of the disk that have been walked over. */
  readonly onPosition?: ((position: number, virtualSize: number) => void) | undefined;
}

interface MergeOptions extends WalkOptions {
  /** The folder in which new files are created. */
  readonly folder: HeldFolder;
  readonly names: StagedNames;
  readonly sync: boolean;
  /** Called before each change of an existing image by this thread. */
  readonly guard: Guard;
  /** For the changes by other threads. */
  readonly mark: HolderMark;
  readonly threads: MergeThreads;
}

/** A merge into a new image that lies elsewhere than on this machine. */
interface MergeIntoOptions extends WalkOptions {
  readonly target: MergeTarget;
  readonly digests: NewPlace;
  /** The name of the digest file in the manifest. */
  readonly digestsFile: string;
}

export interface MergedDisk {
  /** The disk's new entry in the manifest of the staying point. */
  readonly disk: DiskManifest;
  /** Bytes of data that were written, or that the overwrites and the patch will write. */
  readonly writtenBytes: number;
  /** How many copies the list of copies has; undefined: there is no list. */
  readonly copies: number | undefined;
}

const COPY_BYTES = 1024 * 1024;

/**
 * Prepares the merged disk of the staying point. It will have the parent of the oldest dropped point.
 *
 * No point changes yet. New data goes into free clusters of a qcow2 base and new tables go behind its end. A
 * raw base is not written to. Copies that overwrite parts of the base are only listed, and the new header or
 * the patch is a file of its own.
 *
 * @throws {DamageError} data to be copied differs from its digest
 * @throws the file system's error, with `code`; the signal's reason; what the guard throws
 */
export async function mergeDisk(
  chain: DiskChain,
  method: MergeMethod,
  options: MergeOptions,
): Promise<MergedDisk> {
  const layers = await openChain(chain.repository, chain.domain, chain.links, {
    blocking: true,
    signal: options.signal,
  });
  const images = new Map<Layer, Qcow2Reader>();
  try {
    for (const layer of layers) {
      if (layer.disk.format === "qcow2")
        images.set(layer, await Qcow2Reader.open(layer.stored.path, { blocking: true }));
    }
    return await new DiskMerge(chain, layers, images, method, options).run();
  } finally {
    await closeAll(...layers, ...images.values());
  }
}

/**
 * The same into a new image of an object store: all of it is given to the target, which belongs to the merge
 * from here on.
 * @param images the images of the layers
 * @throws {DamageError} data that was read differs from its digest
 */
export async function mergeDiskInto(
  chain: DiskChain,
  { layers, images, clusterSize }: OpenLayers & Pick<MergeMethod, "clusterSize">,
  options: MergeIntoOptions,
): Promise<MergedDisk> {
  const method = { base: null, writeBytes: 0, clusterSize };
  return await new DiskMerge(chain, layers, images, method, options).run();
}

/** The layers of a merge, top first, and the images of those in qcow2. */
export interface OpenLayers {
  readonly layers: readonly Layer[];
  readonly images: ReadonlyMap<Layer, Qcow2Reader>;
}

class DiskMerge {
  readonly #chain: DiskChain;
  readonly #layers: readonly Layer[];
  readonly #images: ReadonlyMap<Layer, Qcow2Reader>;
  readonly #base: Layer | undefined;
  readonly #options: MergeOptions | MergeIntoOptions;
  readonly #geometry: Geometry;
  readonly #complete: boolean;
  /** Undefined: the target takes all data itself. */
  readonly #taken: TakenClusters | undefined;
  readonly #overwrites = new CopyList();
  readonly #breather = new EventLoopTurn();
  /** Used again for each copy: a target doesn't use the bytes after `store` has resolved. */
  #buffer = Buffer.alloc(0);
  #dataBytes = 0;
  #zeroBytes = 0;

  constructor(
    chain: DiskChain,
    layers: readonly Layer[],
    images: ReadonlyMap<Layer, Qcow2Reader>,
    method: MergeMethod,
    options: MergeOptions | MergeIntoOptions,
  ) {
    this.#chain = chain;
    this.#layers = layers;
    this.#images = images;
    this.#base = layers[chain.links.findIndex(({ point }) => point.id === method.base)];
    this.#options = options;
    if (!("target" in options)) {
      const path = this.#base ? this.#base.stored.path : options.folder.at(options.names.image);
      this.#taken = new TakenClusters({ threads: options.threads, target: path, mark: options.mark });
    }
    this.#geometry = { virtualSize: chain.links[0].disk.virtualSize, clusterSize: method.clusterSize };
    this.#complete = layers.at(-1)?.complete ?? false;
  }

  async run(): Promise<MergedDisk> {
    const options = this.#options;
    const sync = "target" in options || options.sync;
    await using target = await this.#openTarget();
    const place = "target" in options ? options.digests : options.folder.at(options.names.digests);
    const [geometry, complete] = [this.#geometry, this.#complete];
    const digests = await MergedDigests.create(place, this.#layers, { geometry, complete });
    let digestsSha256: string | undefined;
    let copies: number | undefined;
    try {
      for await (const part of mergedParts(this.#layers, this.#geometry, failOnDamage)) {
        await this.#breather.yieldIfDue(this.#options.signal);
        await this.#take(part, target, digests);
      }
      await this.#taken?.finish({ sync });
      const header = await target.finish({ sync });
      if (!("target" in options)) {
        const { folder, names } = options;
        if (header) await folder.create(names.header, header, { sync });
        if (this.#base) copies = await this.#overwrites.save(folder.at(names.overwrites), { sync });
      }
      digestsSha256 = await digests?.finish({ sync });
    } finally {
      await closeAll(this.#taken, digests);
    }
    const disk = await this.#describe(target, digestsSha256);
    return { disk, writtenBytes: target.writtenBytes, copies };
  }

  async #openTarget(): Promise<MergeTarget> {
    if ("target" in this.#options) return this.#options.target;
    const { folder, names, guard } = this.#options;
    const [{ disk }] = this.#chain.links;
    const geometry = this.#geometry;
    if (disk.format === "raw") {
      const map = this.#complete ? undefined : folder.at(names.map);
      if (this.#base) {
        return await RawInPlaceTarget.create({
          geometry,
          layers: this.#layers,
          base: this.#base,
          overwrites: this.#overwrites,
          patchPath: folder.at(names.patch),
          mapPath: map,
        });
      }
      return await NewRawTarget.create(folder.at(names.image), geometry, map);
    }
    return await Qcow2Target.create({
      geometry,
      backing: await backingOf(this.#chain),
      layers: this.#layers,
      images: this.#images,
      base: this.#base,
      path: this.#base ? this.#base.stored.path : folder.at(names.image),
      overwrites: this.#overwrites,
      guard,
    });
  }

  async #take(part: MergedPart, target: MergeTarget, digests: MergedDigests | undefined): Promise<void> {
    switch (part.kind) {
      case "zero":
        await this.#zero(part.cluster, part.count, target, digests);
        this.#passed(part.cluster + part.count);
        return;
      case "data":
        await this.#data(part, target, digests);
        return;
      case "mixed":
        await this.#mixed(part, target, digests);
        this.#passed(part.cluster + 1);
        return;
      default:
        part satisfies never;
    }
  }

  #passed(cluster: number): void {
    const { virtualSize, clusterSize } = this.#geometry;
    this.#options.onPosition?.(Math.min(cluster * clusterSize, virtualSize), virtualSize);
  }

  /** A complete image reads as zeroes where nothing is stored, so it records no zero clusters. */
  async #zero(
    cluster: number,
    count: number,
    target: MergeTarget,
    digests: MergedDigests | undefined,
  ): Promise<void> {
    this.#zeroBytes += dataBytesOf({ kind: "data", cluster, count }, this.#geometry);
    await target.erase?.(cluster, count);
    if (this.#complete) return;
    target.zero(cluster, count);
    digests?.addZeroes(cluster, count);
  }

  async #data(
    { cluster, count, from }: Extract<MergedPart, { kind: "data" }>,
    target: MergeTarget,
    digests: MergedDigests | undefined,
  ): Promise<void> {
    const { clusterSize, virtualSize } = this.#geometry;
    // If the end of the disk cuts off a cluster, any bytes may lie behind the end, and stock QEMU shows some.
    // Unless the base keeps such a cluster, it is stored with zeroes there.
    const cut = (cluster + count) * clusterSize > virtualSize;
    const stays = from.layer === this.#base && from.layer.geometry.virtualSize === virtualSize;
    const whole = cut && !stays ? count - 1 : count;
    for (let done = 0; done < whole; ) {
      await this.#breather.yieldIfDue(this.#options.signal);
      const most = Math.min(whole - done, Math.max(1, COPY_BYTES / clusterSize));
      const some = target.alike ? await target.alike(cluster + done, most, from) : most;
      await this.#someData(cluster + done, some, from, target, digests);
      done += some;
      this.#passed(cluster + done);
    }
    if (whole < count) {
      const offset = (cluster + whole) * clusterSize;
      const piece = { offset, length: virtualSize - offset, state: "data" as const, from };
      await this.#mixed({ kind: "mixed", cluster: cluster + whole, pieces: [piece] }, target, digests);
    }
  }

  async #someData(
    cluster: number,
    count: number,
    from: Origin,
    target: MergeTarget,
    digests: MergedDigests | undefined,
  ): Promise<void> {
    const length = dataBytesOf({ kind: "data", cluster, count }, this.#geometry);
    const kept = await target.keep(cluster, count, from);
    const known = digests?.known(cluster, count, from);
    this.#dataBytes += length;
    const placed = kept || !known || !this.#taken ? undefined : await target.place?.(cluster, count, from);
    if (digests && known && placed && this.#taken) {
      await this.#taken.take(from, known, placed);
      digests.add(cluster, count, known);
      return;
    }
    const needsBytes = !kept || (digests !== undefined && known === undefined);
    if (this.#buffer.length < length) this.#buffer = Buffer.allocUnsafeSlow(length);
    const bytes = this.#buffer.subarray(0, needsBytes ? length : 0);
    if (needsBytes) {
      const offset = cluster * this.#geometry.clusterSize;
      await from.layer.read(from.run, offset, bytes, failOnDamage(from.layer));
    }
    if (!kept) await target.store(cluster, count, from, bytes);
    digests?.add(cluster, count, known ?? digests.of(cluster, count, bytes));
  }

  async #mixed(
    { cluster, pieces }: Extract<MergedPart, { kind: "mixed" }>,
    target: MergeTarget,
    digests: MergedDigests | undefined,
  ): Promise<void> {
    const { clusterSize, virtualSize } = this.#geometry;
    const start = cluster * clusterSize;
    const bytes = Buffer.alloc(clusterSize);
    for (const piece of pieces) {
      if (piece.state !== "data") continue;
      const { layer, run } = originOf(piece);
      const at = piece.offset - start;
      await layer.read(run, piece.offset, bytes.subarray(at, at + piece.length), failOnDamage(layer));
    }
    const masks = masksOf(pieces, start, this.#geometry, this.#complete);
    const cut = start + clusterSize > virtualSize;
    const mixed: MixedCluster = { cluster, pieces, bytes, ...masks, blended: masks.blended || cut };
    if (mixed.dataMask === 0 && mixed.zeroMask === ALL_SUBCLUSTERS) {
      await this.#zero(cluster, 1, target, digests);
      return;
    }
    await target.storeMixed(mixed);
    this.#count(mixed);
    digests?.addMixed(mixed);
  }

  #count({ cluster, dataMask, zeroMask }: MixedCluster): void {
    const bytesIn = (mask: number): number =>
      dataBytesOf({ kind: "partial", cluster, count: 1, dataMask: mask }, this.#geometry);
    this.#dataBytes += bytesIn(dataMask);
    this.#zeroBytes += bytesIn(zeroMask);
  }

  async #describe(target: MergeTarget, digestsSha256: string | undefined): Promise<DiskManifest> {
    const options = this.#options;
    const [{ disk }] = this.#chain.links;
    const oldest = (this.#chain.links.at(-1) ?? this.#chain.links[0]).disk;
    const { virtualSize, clusterSize } = this.#geometry;
    const algorithm = mergedAlgorithm(this.#layers);
    const mapPath =
      disk.format === "raw" && !this.#complete && !("target" in options)
        ? options.folder.at(options.names.map)
        : undefined;
    const digestsFile =
      "target" in options ? options.digestsFile : (disk.digests?.file ?? `${disk.name}.digests`);
    const { reason: _reason, ...rest } = disk;
    return {
      ...rest,
      mode: oldest.mode,
      ...(oldest.mode === "full" ? { reason: PRUNED_BELOW } : {}),
      parent: oldest.parent,
      clusterSize,
      dirtyBytes: this.#complete ? virtualSize : this.#dataBytes + this.#zeroBytes,
      dataBytes: this.#dataBytes,
      zeroBytes: this.#zeroBytes,
      storedBytes: target.storedBytes,
      bitmap: this.#complete ? null : disk.bitmap,
      map:
        mapPath === undefined
          ? null
          : { file: disk.map?.file ?? `${disk.name}.map`, sha256: await sha256OfFile(mapPath) },
      digests:
        digestsSha256 !== undefined && algorithm !== undefined
          ? { file: digestsFile, algorithm, sha256: digestsSha256 }
          : null,
    };
  }
}

/** The backing file of a merged image: that of the oldest dropped point. */
export async function backingOf({ repository, domain, links }: DiskChain): Promise<Backing | undefined> {
  const { disk } = links.at(-1) ?? links[0];
  if (disk.parent === null) return undefined;
  const parent = await repository.point(domain, disk.parent);
  const below = diskOf(parent, disk.name);
  return below && { name: `../${disk.parent}/${imageName(parent, below)}`, format: below.format };
}
