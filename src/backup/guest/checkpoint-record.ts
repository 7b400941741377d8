/**
 * Which checkpoints of a domain this host has made for which repository. It lies outside of the repository,
 * because whoever can write to one could give it the id of another, and so have that one's checkpoints
 * deleted.
 *
 *     /var/lib/nbdpull/repositories/
 *       1a2b3c4d-…/                      the repository's id
 *         place.json                     where the repository is
 *         f00dcafe-….json                the checkpoints of a domain (its UUID)
 */
import { join } from "node:path";
import { z } from "zod";
import { DamageError, hasCode, messageOf, PreconditionError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { shellWord } from "../base/shell-word.js";
import { isMissing, makeFolders } from "../host/durable-files.js";
import { HeldFolder } from "../host/held-folder.js";
import { Repository } from "../repository/repository.js";

const REPOSITORIES = "repositories";
const PLACE = "place.json";
/** Names that a record keeps. libvirt has a few, and the others are those that it has forgotten. */
const MOST_NAMES = 10_000;
/** Longer than any record. */
const MOST_BYTES = 4 * 1024 * 1024;

const place = z.object({ format: z.literal("nbdpull-place"), version: z.literal(1), path: z.string() });
const checkpoints = z.object({
  format: z.literal("nbdpull-checkpoints"),
  version: z.literal(1),
  checkpoints: z.array(z.string()),
});

interface RecordOptions {
  /** The folder of all records; see `usualStateFolder`. */
  readonly stateFolder: string;
  readonly repository: Repository;
  readonly domainUuid: string;
  /** The user says that the repository was moved to where it is now. */
  readonly moved: boolean;
  /** Names of libvirt's checkpoints that may be of this repository, by their prefix. */
  readonly found: () => Promise<readonly string[]>;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/**
 * The checkpoints of one repository and domain. Only one process uses it at a time: the one that works in the
 * folder of the domain's job.
 */
export class CheckpointRecord {
  readonly #folder: string | undefined;
  readonly #file: string;
  #names: ReadonlySet<string>;

  private constructor(folder: string | undefined, file: string, names: readonly string[]) {
    this.#folder = folder;
    this.#file = file;
    this.#names = new Set(names);
  }

  /**
   * Reads the record. The first time, it takes over what libvirt has of checkpoints with the repository's
   * prefix, unless another repository's record has them: earlier versions kept no record.
   *
   * If nothing can be written there, it knows only what is added to it, with a warning.
   *
   * @throws {PreconditionError} `E_REPOSITORY_MOVED`: a repository with this id was last seen elsewhere
   * @throws {DamageError} `E_CHECKPOINT_RECORD`: the record is not what this program writes
   */
  static async open(options: RecordOptions): Promise<CheckpointRecord> {
    const { stateFolder, repository, domainUuid, onWarning } = options;
    const folder = join(stateFolder, REPOSITORIES, repository.id);
    const file = `${domainUuid}.json`;
    try {
      await makeFolders(folder);
      await bindToPlace(folder, options);
      const known = await namesIn(folder, file);
      if (known) return new CheckpointRecord(folder, file, known);
      const others = await namesOfOthers(join(stateFolder, REPOSITORIES), repository.id, file);
      const names = (await options.found()).filter((name) => !others.has(name));
      const record = new CheckpointRecord(folder, file, names);
      // Another first run may have written it meanwhile, and may have made a checkpoint.
      if (!(await record.#create())) await record.refresh();
      return record;
    } catch (error) {
      const cannotWrite = ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EEXIST"];
      if (!cannotWrite.some((code) => hasCode(error, code))) throw error;
      onWarning?.(
        `it can't be recorded which checkpoints are this repository's, so old ones are not deleted: ${messageOf(error)}`,
      );
      return new CheckpointRecord(undefined, file, []);
    }
  }

  /** The domain's records of those repositories; none is made. @throws {DamageError} `E_CHECKPOINT_RECORD` */
  static async existing(
    repositories: readonly RecordedRepository[],
    domainUuid: string,
  ): Promise<readonly CheckpointRecord[]> {
    const file = `${domainUuid}.json`;
    const records: CheckpointRecord[] = [];
    for (const { folder } of repositories) {
      const names = await namesIn(folder, file);
      if (names) records.push(new CheckpointRecord(folder, file, names));
    }
    return records;
  }

  get names(): ReadonlySet<string> {
    return this.#names;
  }

  /** Whether this host made the checkpoint for this repository. */
  has(name: string): boolean {
    return this.#names.has(name);
  }

  /** Call it before the checkpoint is made, so that the next backup knows it if this one dies. */
  async add(name: string): Promise<void> {
    this.#names = new Set([...this.#names, name]);
    await this.#write();
  }

  /** Reads it again, after a wait in which another process may have changed it. */
  async refresh(): Promise<void> {
    if (this.#folder === undefined) return;
    this.#names = new Set(await namesIn(this.#folder, this.#file));
  }

  /** Forgets checkpoints that were deleted. Those that only libvirt has forgotten may be defined again. */
  async forget(deleted: readonly string[]): Promise<void> {
    const kept = [...this.#names].filter((name) => !deleted.includes(name));
    if (kept.length === this.#names.size) return;
    this.#names = new Set(kept);
    await this.#write();
  }

  async #write(): Promise<void> {
    if (this.#folder === undefined) return;
    await using folder = await HeldFolder.open(this.#folder);
    await folder.replace(this.#file, this.#text());
    await folder.sync();
  }

  /** @returns false if there is a record by now, which stays */
  async #create(): Promise<boolean> {
    if (this.#folder === undefined) return true;
    await using folder = await HeldFolder.open(this.#folder);
    const isNew = await folder.createWhole(this.#file, this.#text());
    await folder.sync();
    return isNew;
  }

  #text(): string {
    // Their names sort by age.
    const names = [...this.#names].sort().slice(-MOST_NAMES);
    return textOf({ format: "nbdpull-checkpoints", version: 1, checkpoints: names });
  }
}

/** A repository that this host has backed up to. */
export interface RecordedRepository {
  readonly id: string;
  /** The folder of its records. */
  readonly folder: string;
}

/**
 * All repositories that this host has backed up to.
 * @throws {PreconditionError} `E_STATE_FOLDER`: the records are another user's
 */
export async function recordedRepositories(stateFolder: string): Promise<readonly RecordedRepository[]> {
  const path = join(stateFolder, REPOSITORIES);
  try {
    await using folder = await HeldFolder.open(path);
    return (await folder.entries())
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => ({ id: name, folder: join(path, name) }));
  } catch (error) {
    if (isMissing(error)) return [];
    if (!hasCode(error, "EACCES") && !hasCode(error, "EPERM")) throw error;
    const message = `${path}, where it is recorded which checkpoints are whose, is closed to this user: run it as the user who makes the backups (sudo, if that is root). Nothing was changed`;
    throw new PreconditionError("E_STATE_FOLDER", message, { cause: error, details: { path } });
  }
}

/**
 * The repository itself, if it still is where this host last backed up to it.
 * @throws {DamageError} `E_CHECKPOINT_RECORD`; `E_REPOSITORY`: something is there, and can't be read
 */
export async function whereItWas(
  { id, folder }: RecordedRepository,
  signal?: AbortSignal,
): Promise<Repository | undefined> {
  await using held = await HeldFolder.open(folder);
  const known = await read(held, PLACE, place);
  const there = known && (await Repository.openIfThere(known.path, { signal }));
  return there?.id === id ? there : undefined;
}

/**
 * What this host has recorded about a repository. Nothing is made.
 * @throws {DamageError} `E_CHECKPOINT_RECORD`
 */
export async function lookAtCheckpointRecord(
  stateFolder: string,
  id: string,
  {
    domainUuid,
    signal,
  }: { readonly domainUuid: string | undefined; readonly signal?: AbortSignal | undefined },
): Promise<{
  readonly folder: string;
  /** Where it was last backed up to; undefined: there is no record. */
  readonly path: string | undefined;
  /** Whether a repository with this id is there. */
  readonly isThere: boolean;
  /** How many checkpoints of the domain are recorded. */
  readonly checkpoints: number;
}> {
  const folder = join(stateFolder, REPOSITORIES, id);
  const known = await unlessMissing(HeldFolder.open(folder));
  await using held = known;
  const path = held && (await read(held, PLACE, place))?.path;
  if (path === undefined) return { folder, path, isThere: false, checkpoints: 0 };
  const names = domainUuid === undefined ? undefined : await namesIn(folder, `${domainUuid}.json`);
  const there = await Repository.openIfThere(path, { signal }).catch(() => undefined);
  return { folder, path, isThere: there?.id === id, checkpoints: names?.length ?? 0 };
}

async function unlessMissing<T>(opening: Promise<T>): Promise<T | undefined> {
  return await opening.catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
}

/** Notes the repository's place at the first time, and compares it later. */
async function bindToPlace(path: string, { repository, moved }: RecordOptions): Promise<void> {
  await using folder = await HeldFolder.open(path);
  const here = await repository.realPath();
  const text = textOf({ format: "nbdpull-place", version: 1, path: here });
  // Of two first runs at once, only one notes its place.
  const isFirst = !(await folder.find(PLACE)) && (await folder.createWhole(PLACE, text));
  if (isFirst) return await folder.sync();
  const known = await read(folder, PLACE, place);
  if (known?.path === here) return;
  // The way into a store may have changed, such as the profile: it is noted, so that it is found again.
  if (known && !moved && !(await repository.isAt(known.path))) {
    const message = `${here} has the id of the repository that was last backed up to at ${known.path}. If it was moved, say so with --moved. If it is a copy, back up to one of the two only, or to a new repository: backups to a copy delete the checkpoints that the other needs. If you know of neither, somebody may have given it that id (the record is ${shellWord(join(path, PLACE))})`;
    const details = { path: here, recorded: known.path, record: join(path, PLACE) };
    throw new PreconditionError("E_REPOSITORY_MOVED", message, { details });
  }
  await folder.replace(PLACE, text);
  await folder.sync();
}

function textOf(value: object): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

async function namesIn(path: string, file: string): Promise<readonly string[] | undefined> {
  await using folder = await HeldFolder.open(path);
  return (await read(folder, file, checkpoints))?.checkpoints;
}

/** The domain's checkpoints in the records of other repositories. */
async function namesOfOthers(path: string, id: string, file: string): Promise<ReadonlySet<string>> {
  await using folder = await HeldFolder.open(path);
  const names = new Set<string>();
  for (const entry of await folder.entries()) {
    if (entry.name === id || !entry.isDirectory()) continue;
    await using other = await folder.folder(entry.name);
    for (const name of (other && (await read(other, file, checkpoints)))?.checkpoints ?? []) names.add(name);
  }
  return names;
}

/** Undefined if there is no such file. */
async function read<T>(folder: HeldFolder, name: string, schema: z.ZodType<T>): Promise<T | undefined> {
  const path = join(folder.path, name);
  let text: string;
  try {
    text = (await folder.read(name, MOST_BYTES)).toString("utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  const parsed = schema.safeParse(parseJson(text));
  if (parsed.success) return parsed.data;
  const message = `${path} is no record of this program: look at it, and remove it. Checkpoints that it named are then taken for the repository's by their names`;
  throw new DamageError("E_CHECKPOINT_RECORD", message, { details: { path } });
}
