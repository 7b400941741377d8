import type { OutageCounts, OutageNews, Outages } from "../src/backup/export/outages.js";
import type { Output, Progress } from "./output.js";

/** An outage that is over sooner gets one line, else there is one at its beginning, too. */
const SHORT_MS = 2000;
/** Outages of a disk that are told; the manifest and JSON count all. */
const MOST_TOLD = 20;

interface Disk {
  told: number;
  reason: string;
  /** Runs while the outage may still be a short one. */
  timer: NodeJS.Timeout | undefined;
}

/** Tells of lost connections on stderr and in the progress. */
export class OutageNotes {
  readonly #output: Output;
  readonly #progress: Progress;
  readonly #disks = new Map<string, Disk>();

  constructor(output: Output, progress: Progress) {
    this.#output = output;
    this.#progress = progress;
  }

  readonly note = (name: string, news: OutageNews): void => {
    const disk: Disk = this.#disks.get(name) ?? { told: 0, reason: "", timer: undefined };
    this.#disks.set(name, disk);
    this.#progress.away(name, news.kind === "lost");
    if (news.kind === "lost") this.#lost(name, disk, news);
    else this.#back(name, disk, news.afterMs);
  };

  #lost(name: string, disk: Disk, { reason, withinMs = 0 }: Extract<OutageNews, { kind: "lost" }>): void {
    disk.told += 1;
    disk.reason = reason;
    disk.timer = setTimeout(() => {
      disk.timer = undefined;
      this.#tell(
        disk,
        `${name}: the connection was lost (${reason}): waiting up to ${withinMs / 1000} s for it`,
      );
    }, SHORT_MS).unref();
  }

  #back(name: string, disk: Disk, afterMs: number): void {
    const seconds = `${(afterMs / 1000).toFixed(1)} s`;
    if (disk.timer === undefined) this.#tell(disk, `${name}: the connection is back after ${seconds}`);
    else this.#tell(disk, `${name}: the connection was lost (${disk.reason}), and is back after ${seconds}`);
    clearTimeout(disk.timer);
    disk.timer = undefined;
  }

  #tell({ told }: Disk, line: string): void {
    if (told <= MOST_TOLD) this.#output.note(line);
    if (told === MOST_TOLD) this.#output.note("further losses of this connection are only counted");
  }
}

/** The counts for a result of JSON; nothing where there were none. */
export function outagesOf({ counts }: Outages): { readonly outages?: OutageCounts } {
  return counts === undefined ? {} : { outages: counts };
}
