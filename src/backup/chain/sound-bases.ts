import { damageIn } from "../base/damage.js";
import { DamageError } from "../base/errors.js";
import { allOrNone } from "../base/in-parallel.js";
import { ownObstacles } from "../repository/judged-points.js";
import type { Manifest } from "../repository/manifest.js";
import type { Repository } from "../repository/repository.js";
import { proveChain } from "./chain.js";

/** Points that are looked at side by side. */
const AT_ONCE = 8;

interface SoundBasesOptions {
  /** The points of the domain that were read already. */
  readonly points: readonly Manifest[];
  /**
   * What is known to be whole: chains, as `DISK POINT`, and points by themselves, as `POINT`. What is checked
   * now is added.
   */
  readonly proven?: Set<string> | undefined;
}

/**
 * Proves the bases of increments, each for all disks at once. One disk may lie there whole while another, or
 * the NVRAM, is damaged. An increment on the whole one could be restored, but a copy takes over whole points
 * only, with all that they are based on: it would leave out this point, and every later one.
 *
 * Damage of one disk may be found after another disk has got its base. So plan all disks again until
 * `unsound` grows no more.
 */
export class SoundBases {
  readonly #repository: Repository;
  readonly #domain: string;
  readonly #points: Map<string, Manifest>;
  readonly #proven: Set<string>;
  /** Why a chain can't be restored, by its key. */
  readonly #damaged = new Map<string, DamageError>();
  /** What is damaged in a point, or in what it is based on, by its id. */
  readonly #unsound = new Map<string, string>();

  /** @param domain the name of its folder in the repository */
  constructor(repository: Repository, domain: string, { points, proven = new Set() }: SoundBasesOptions) {
    this.#repository = repository;
    this.#domain = domain;
    this.#points = new Map(points.map((point) => [point.id, point]));
    this.#proven = proven;
  }

  /** How many points are known to be damaged. */
  get unsound(): number {
    return this.#unsound.size;
  }

  /**
   * Looks at the disk's chain as `proveChain` does. Of everything else that the point is based on it looks
   * whether the files are there and a verify has found damage.
   * @returns why the point is no base though the disk's chain is whole; undefined: it is one
   * @throws {DamageError} the disk can't be restored to that point
   */
  async prove(point: Manifest, disk: string): Promise<string | undefined> {
    await this.#proveChain(point, disk);
    const why = await this.#damageBelow(point);
    if (why === undefined) return undefined;
    return `an increment on ${point.id} could not be copied to another repository: ${why}`;
  }

  async #proveChain(point: Manifest, disk: string): Promise<void> {
    const chain = `${disk} ${point.id}`;
    const known = this.#damaged.get(chain);
    if (known) throw known;
    if (this.#proven.has(chain)) return;
    try {
      await proveChain(this.#repository, this.#domain, point, disk);
      this.#proven.add(chain);
    } catch (error) {
      if (!(error instanceof DamageError)) throw error;
      this.#damaged.set(chain, error);
      this.#note(String(error.details["point"] ?? point.id), error.message);
      this.#note(point.id, error.message);
      throw error;
    }
  }

  /** What is damaged in the point, or in any that any of its disks is based on. */
  async #damageBelow(point: Manifest): Promise<string | undefined> {
    const ids = new Set([point.id]);
    // Grows while it is walked.
    for (const id of ids) {
      for (const { parent } of (await this.#read(id))?.disks ?? []) if (parent !== null) ids.add(parent);
    }
    await allOrNone([...ids], AT_ONCE, undefined, (id) => this.#look(id));
    const found = [...ids].find((id) => this.#unsound.has(id));
    return found === undefined ? undefined : this.#unsound.get(found);
  }

  /** A prune that runs hides points that others are still based on, so not all have been read already. */
  async #read(id: string): Promise<Manifest | undefined> {
    const known = this.#points.get(id);
    if (known || this.#unsound.has(id)) return known;
    try {
      const manifest = await this.#repository.point(this.#domain, id);
      this.#points.set(id, manifest);
      return manifest;
    } catch (error) {
      this.#noteFailure(id, error);
      return undefined;
    }
  }

  async #look(id: string): Promise<void> {
    const manifest = this.#points.get(id);
    if (!manifest || this.#proven.has(id) || this.#unsound.has(id)) return;
    try {
      const [obstacle] = await ownObstacles(this.#repository, this.#domain, manifest);
      if (obstacle) this.#note(id, damaged(id, obstacle.message, obstacle.disk));
      else this.#proven.add(id);
    } catch (error) {
      this.#noteFailure(id, error);
    }
  }

  /** @throws `error`, if it is no damage */
  #noteFailure(point: string, error: unknown): void {
    const found = damageIn(error);
    if (found === undefined) throw error;
    this.#note(point, error instanceof DamageError ? error.message : damaged(point, found));
  }

  #note(point: string, message: string): void {
    if (!this.#unsound.has(point)) this.#unsound.set(point, message);
  }
}

function damaged(point: string, how: string, disk?: string): string {
  return `${disk === undefined ? "" : `disk ${disk} of `}point ${point} is damaged: ${how}`;
}
