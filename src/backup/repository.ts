import { randomUUID } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { lock } from "proper-lockfile";
import { z } from "zod";
import { BackupError, DamageError, PreconditionError, UsageError } from "./errors.js";
import { isMissing, syncFolder } from "./files.js";
import {
  formatManifest,
  isPointId,
  type Manifest,
  parseManifest,
  pointIdAt,
  timeOfPointId,
} from "./manifest.js";

const MARKER = "nbdpull.json";
const MANIFEST = "point.json";
const PARTIAL = ".partial";
const LOCK_STALE_MS = 10_000;

const marker = z.object({
  format: z.literal("nbdpull-repository"),
  version: z.literal(1),
  id: z.uuid(),
});

/** A point that is still being made, in a folder that readers ignore. */
export interface PendingPoint {
  readonly id: string;
  /** Where its files are created. */
  readonly folder: string;
  /** Set when the clock stood before the newest point. */
  readonly clockWarning: string | undefined;
  /**
   * Writes the manifest, brings everything to stable storage and gives the folder its final name: from then on the
   * point exists.
   */
  commit(manifest: Manifest, options: { readonly sync: boolean }): Promise<void>;
}

/**
 * The folder that points are kept in, as docs/repository-format.md describes it. Reading needs no lock: a point
 * exists when its folder has its final name, and is never changed afterwards.
 */
export class Repository {
  readonly path: string;
  readonly id: string;

  private constructor(path: string, id: string) {
    this.path = path;
    this.id = id;
  }

  /**
   * @throws {PreconditionError} there is no repository at `path`
   * @throws {DamageError} its marker file cannot be read
   */
  static async open(path: string): Promise<Repository> {
    let text: string;
    try {
      text = await readFile(join(path, MARKER), "utf8");
    } catch (cause) {
      if (!isMissing(cause)) throw cause;
      throw new PreconditionError(
        "E_NO_REPOSITORY",
        `there is no repository at ${path}: ${MARKER} is not there`,
        {
          cause,
          details: { path },
        },
      );
    }
    const parsed = marker.safeParse(parseJson(text));
    if (!parsed.success) {
      throw new DamageError(
        "E_REPOSITORY",
        `${join(path, MARKER)} is not the mark of a repository of version 1`,
        {
          details: { path },
        },
      );
    }
    return new Repository(path, parsed.data.id);
  }

  /**
   * Opens the repository at `path`; makes one where nothing or an empty folder is.
   * @throws {UsageError} the folder holds something else
   */
  static async openOrCreate(path: string): Promise<Repository> {
    await mkdir(path, { recursive: true });
    const present = await readdir(path);
    if (present.includes(MARKER)) return await Repository.open(path);
    if (present.some((name) => !name.startsWith("."))) {
      const message = `${path} is not empty and not a repository: name an empty folder, a new one, or a repository`;
      throw new UsageError("E_NOT_A_REPOSITORY", message, { details: { path } });
    }
    const id = randomUUID();
    const temporary = join(path, `.${MARKER}.${id}`);
    await writeFile(
      temporary,
      `${JSON.stringify({ format: "nbdpull-repository", version: 1, id }, null, 2)}\n`,
      {
        flush: true,
      },
    );
    await rename(temporary, join(path, MARKER));
    await syncFolder(path);
    return await Repository.open(path);
  }

  /** Names of the domains that have a folder, sorted. */
  async domains(): Promise<string[]> {
    const entries = await readdir(this.path, { withFileTypes: true });
    return entries
      .filter((entry) => entry.isDirectory() && !entry.name.startsWith("."))
      .map((entry) => entry.name)
      .sort();
  }

  /**
   * The points of a domain, oldest first; `onDamage` is told of those whose manifest is missing or wrong, which are
   * left out.
   */
  async points(domain: string, onDamage: (error: DamageError) => void): Promise<Manifest[]> {
    const points: Manifest[] = [];
    for (const id of await this.pointIds(domain)) {
      try {
        points.push(await this.point(domain, id));
      } catch (error) {
        if (!(error instanceof DamageError)) throw error;
        onDamage(error);
      }
    }
    return points;
  }

  /** The ids of a domain's points, oldest first, whether their manifests can be read or not. */
  async pointIds(domain: string): Promise<string[]> {
    const entries = await readdir(this.#domainFolder(domain)).catch((error: unknown) => {
      if (isMissing(error)) return [];
      throw error;
    });
    return entries.filter(isPointId).sort();
  }

  pointFolder(domain: string, id: string): string {
    return join(this.#domainFolder(domain), id);
  }

  /**
   * Runs `work` with a new pending point, as the only writer of that domain. What a dead run left is removed first.
   * If `work` ends without a commit, nothing is left.
   *
   * @throws {PreconditionError} another process writes this domain's points
   */
  async withPendingPoint<T>(domain: string, work: (point: PendingPoint) => Promise<T>): Promise<T> {
    const folder = this.#domainFolder(domain);
    await mkdir(folder, { recursive: true });
    await syncFolder(this.path);
    return await withLock(folder, domain, async (assertHeld) => {
      await removePartials(folder);
      const { id, clockWarning } = await this.#newId(domain);
      const partial = join(folder, `.${id}${PARTIAL}`);
      await mkdir(partial);
      try {
        return await work({
          id,
          folder: partial,
          clockWarning,
          commit: async (manifest, options) => {
            assertHeld();
            await commit(partial, join(folder, id), manifest, options);
          },
        });
      } finally {
        await rm(partial, { recursive: true, force: true });
      }
    });
  }

  async #newId(domain: string): Promise<{ id: string; clockWarning: string | undefined }> {
    const now = pointIdAt(new Date());
    const newest = (await this.pointIds(domain)).at(-1);
    if (newest === undefined || now > newest) return { id: now, clockWarning: undefined };
    const id = pointIdAt(new Date(timeOfPointId(newest) + 1));
    return {
      id,
      clockWarning: `the clock stands before the newest point ${newest}: this point is called ${id}`,
    };
  }

  /** @throws {DamageError} the manifest is missing, wrong, or another point's */
  async point(domain: string, id: string): Promise<Manifest> {
    const path = join(this.pointFolder(domain, id), MANIFEST);
    let text: string;
    try {
      text = await readFile(path, "utf8");
    } catch (cause) {
      if (!isMissing(cause)) throw cause;
      throw new DamageError("E_MANIFEST", `point ${id} of ${domain} has no manifest: ${path} is missing`, {
        cause,
        details: { domain, point: id },
      });
    }
    const manifest = parseManifest(text, path);
    if (manifest.id !== id) {
      throw new DamageError(
        "E_MANIFEST",
        `${path} is the manifest of point ${manifest.id}: the folder was renamed`,
        {
          details: { domain, point: id },
        },
      );
    }
    return manifest;
  }

  /** @throws {UsageError} the name cannot be a folder's */
  #domainFolder(domain: string): string {
    if (domain === "" || domain.startsWith(".") || /[/\0]/.test(domain)) {
      throw new UsageError("E_DOMAIN_NAME", `"${domain}" cannot be the name of a domain's folder`);
    }
    return join(this.path, domain);
  }
}

/** Everything inside is on stable storage before the folder gets its name, and its name is before this returns. */
async function commit(
  partial: string,
  final: string,
  manifest: Manifest,
  options: { readonly sync: boolean },
): Promise<void> {
  await writeFile(join(partial, MANIFEST), formatManifest(manifest), { flag: "wx", flush: options.sync });
  if (options.sync) await syncFolder(partial);
  await rename(partial, final);
  if (options.sync) await syncFolder(join(final, ".."));
}

/** The caller holds the domain's lock, so whatever is partial belongs to a run that died. */
async function removePartials(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    if (name.startsWith(".") && name.endsWith(PARTIAL)) await rm(join(folder, name), { recursive: true });
  }
}

/**
 * A lock that a dead process loses after some seconds, and that works on network file systems. Who comes while it is
 * held waits a little longer than that. `work` is given a check that throws once the lock was lost.
 */
async function withLock<T>(
  folder: string,
  domain: string,
  work: (assertHeld: () => void) => Promise<T>,
): Promise<T> {
  let lost: Error | undefined;
  const release = await lock(folder, {
    lockfilePath: join(folder, ".lock"),
    stale: LOCK_STALE_MS,
    update: LOCK_STALE_MS / 4,
    retries: { retries: 12, minTimeout: LOCK_STALE_MS / 10, factor: 1 },
    onCompromised: (error) => {
      lost = error;
    },
  }).catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code !== "ELOCKED") throw cause;
    const message = `another nbdpull is writing points of ${domain} (${folder}): try again when it has ended`;
    throw new PreconditionError("E_LOCKED", message, { cause, details: { domain } });
  });
  try {
    return await work(() => {
      if (lost) {
        const message = `the lock on ${folder} was lost: another process may have taken it (was this one suspended?)`;
        throw new BackupError("E_LOCK_LOST", message, { cause: lost });
      }
    });
  } finally {
    await release().catch(() => undefined);
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
