/**
 * `repair --from`: disks as they are now, served by NBD, which may still have the content of damaged
 * clusters.
 */

import { UsageError } from "../src/backup/base/errors.js";
import type { ClusterSource } from "../src/backup/repair/cluster-sources.js";
import { NbdClient, NbdError } from "../src/nbd/index.js";

/** The disks that a user has named, connected to. The caller closes them. */
export class LivingDisks implements AsyncDisposable {
  readonly #clients = new Map<string, NbdClient>();

  /**
   * @param named each `DISK=URI`
   * @throws {UsageError} `E_USAGE`: one is not
   * @throws {NbdError} a server can't be reached
   */
  static async connect(named: readonly string[], signal: AbortSignal): Promise<LivingDisks> {
    const disks = new LivingDisks();
    try {
      for (const text of named) {
        const [, disk, uri] = /^([^=]+)=(.+)$/.exec(text) ?? [];
        if (disk === undefined || uri === undefined) {
          throw new UsageError(
            "E_USAGE",
            `--from takes a disk and an NBD URI, such as vda=nbd://host/vda, not ${text}`,
          );
        }
        disks.#clients.set(disk, await NbdClient.connect(uri, { signal }));
      }
      return disks;
    } catch (error) {
      await disks[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Those of a running domain, whose clients somebody else closes. */
  static over(clients: ReadonlyMap<string, NbdClient>): LivingDisks {
    const disks = new LivingDisks();
    for (const [disk, client] of clients) disks.#clients.set(disk, client);
    return disks;
  }

  /** What there is for a disk. */
  sourcesOf(disk: string): readonly ClusterSource[] {
    const client = this.#clients.get(disk);
    if (!client) return [];
    const read = async (guestOffset: number, target: Buffer): Promise<boolean> => {
      if (guestOffset + target.length > client.export.size) return false;
      try {
        await client.read(guestOffset, target);
        return true;
      } catch (error) {
        // A place that the server can't read, or a connection that is lost: other sources may have it.
        if (error instanceof NbdError) return false;
        throw error;
      }
    };
    return [{ name: "the living disk", read }];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled([...this.#clients.values()].map((client) => client.close()));
  }
}
