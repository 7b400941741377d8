import type { HeldLock } from "../repository/domain-lock.js";
import { removeLeftovers } from "../repository/leftovers.js";
import { makePoint, type PendingPoint, partialName } from "../repository/pending-point.js";
import type { Repository } from "../repository/repository.js";
import { makeStoredPoint } from "../repository/stored-point.js";
import type { RecordFolder } from "../storage/record-folder.js";
import type { StoreWriting } from "../storage/stored-writing.js";

/** The repository that is copied to, while it is written. */
export interface CopyTarget {
  readonly make: MakePoint;
  /** Writes small files beside the points of the domain. */
  record(write: (folder: RecordFolder) => Promise<void>): Promise<void>;
}

interface CopyTargetOptions {
  readonly to: Repository;
  readonly domain: string;
  /** How many domains are copied side by side, this one among them; default 1. */
  readonly domainsAtOnce?: number | undefined;
  readonly signal: AbortSignal;
}

/** Makes a point of that id. */
export type MakePoint = (id: string, work: (point: PendingPoint) => Promise<void>) => Promise<void>;

/**
 * Runs `work` as the only writer of the domain.
 * @param goOnWith ids of points that a killed run may have begun to copy: what it has left of them stays
 *   until `work` has ended
 */
export async function writingCopy<T>(
  { to, domain, domainsAtOnce, signal }: CopyTargetOptions,
  goOnWith: ReadonlySet<string>,
  work: (target: CopyTarget) => Promise<T>,
): Promise<T> {
  if (to.isInStore) {
    const inStore = async (writing: StoreWriting): Promise<T> => {
      const done = await work(storeOf(writing, { imagesAtOnce: domainsAtOnce, signal }));
      await writing.clearLeftovers({ signal });
      return done;
    };
    return await to.writingInStore(domain, inStore, signal, goOnWith);
  }
  const inFolder = async (held: HeldLock): Promise<T> => {
    const done = await work(folderOf(held));
    await removeLeftovers(held.folder);
    return done;
  };
  const clear = (folder: HeldLock["folder"]): Promise<void> =>
    removeLeftovers(folder, (name) => [...goOnWith].some((id) => name === partialName(id)));
  return await to.writing(domain, inFolder, signal, clear);
}

function folderOf(held: HeldLock): CopyTarget {
  return {
    make: (copyOf, work) => makePoint(held, work, { copyOf }),
    record: async (write) => {
      await held.assertHeld();
      await write(held.folder);
    },
  };
}

function storeOf(
  writing: StoreWriting,
  options: { readonly imagesAtOnce: number | undefined; readonly signal: AbortSignal },
): CopyTarget {
  return {
    make: (id, work) => makeStoredPoint(writing, work, { id, goOn: true, ...options }),
    record: async (write) => {
      await writing.assertHeld();
      await write(writing.records);
    },
  };
}
