/**
 * The display of long jobs on a terminal: a line for each disk that is under way, below all that was printed.
 *
 *     web vda  ████████████░░░░░░░░░░░░░░░░░░   41%  4.1 GiB        212 MiB/s  0:31 left
 *     db vda   ███░░░░░░░░░░░░░░░░░░░░░░░░░░░   11%  1.2 GiB  connection lost
 *
 * Loaded only where it is shown.
 */
import { createLogUpdate } from "log-update";
import sliceAnsi from "slice-ansi";
import stringWidth from "string-width";
import { printable } from "../src/backup/base/printable.js";
import { Pace } from "./pace.js";
import { isOf, type Progress } from "./progress.js";
import { human } from "./sizes.js";
import { showBelow } from "./terminal.js";

/**
 * Seldom enough that a terminal which changes its width mostly does so between two drawings, and says so in
 * time.
 */
const REFRESH_MS = 1000;
const NARROWEST_BAR = 8;
const WIDEST_BAR = 40;
const GAP = "  ";
/** Of a name, where there is room for little else. */
const SHORTEST_NAME = 12;

interface Disk {
  readonly pace: Pace;
  total: number;
  isAway: boolean;
}

export class Display implements Progress {
  readonly #stream = process.stderr;
  readonly #log = createLogUpdate(process.stderr, { showCursor: true });
  readonly #disks = new Map<string, Disk>();
  readonly #timer: NodeJS.Timeout;
  /** What is on the screen. */
  #shown: readonly string[] = [];
  #columns = columnsOf(process.stderr);

  constructor() {
    this.#timer = setInterval(() => this.#show(), REFRESH_MS).unref();
    this.#stream.on("resize", this.#resized);
    showBelow({ clear: () => this.#clear(), show: () => this.#show() });
  }

  update(name: string, position: number, total: number, readBytes: number): void {
    const disk = this.#disks.get(name) ?? { pace: new Pace(), total, isAway: false };
    disk.total = total;
    disk.pace.note(position, readBytes, performance.now());
    if (this.#disks.has(name)) return;
    this.#disks.set(name, disk);
    this.#show();
  }

  away(name: string, isAway: boolean): void {
    const disk = this.#disks.get(name);
    if (disk) disk.isAway = isAway;
  }

  end(subject: string): void {
    for (const name of this.#disks.keys()) if (isOf(subject, name)) this.#disks.delete(name);
    this.#show();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#stream.off("resize", this.#resized);
    this.#clear();
    showBelow(undefined);
  }

  #show(): void {
    this.#columns = columnsOf(this.#stream);
    // What doesn't fit on the screen could not be taken away again.
    const most = Math.max(1, (this.#stream.rows || 24) - 2);
    // The last column stays free: some terminals wrap once it is written to.
    this.#shown = linesOf([...this.#disks].slice(0, most), this.#columns - 1, performance.now());
    if (this.#shown.length > 0) this.#log(this.#shown.join("\n"));
    else this.#log.clear();
  }

  #clear(): void {
    this.#shown = [];
    this.#log.clear();
  }

  /** A terminal that became narrower has wrapped our lines: they take more rows now than were written. */
  readonly #resized = (): void => {
    const columns = columnsOf(this.#stream);
    if (columns < this.#columns && isReflowing(process.env)) {
      const rows = this.#shown.map((line) => Math.max(1, Math.ceil(stringWidth(line) / columns)));
      const more = rows.reduce((sum, count) => sum + count, 0) - this.#shown.length;
      this.#stream.write("\x1b[1A\x1b[2K".repeat(more));
    }
    this.#clear();
    this.#show();
  };
}

function columnsOf(stream: { readonly columns?: number }): number {
  return stream.columns || 80;
}

/** xterm cuts lines where others wrap them anew. */
function isReflowing(env: NodeJS.ProcessEnv): boolean {
  return env["XTERM_VERSION"] === undefined;
}

function linesOf(disks: readonly (readonly [string, Disk])[], columns: number, now: number): string[] {
  const names = disks.map(([name]) => printable(name));
  const widest = Math.max(0, ...names.map((name) => stringWidth(name)));
  const facts = aligned(
    disks.map(([, disk]) => factsOf(disk, now)),
    columns - Math.min(widest, SHORTEST_NAME),
  );
  return disks.map(([, disk], index) => {
    const end = facts[index] ?? "";
    const room = Math.max(1, columns - end.length - GAP.length);
    const name = padded(names[index] ?? "", Math.min(widest, room));
    const bar = Math.min(WIDEST_BAR, room - widest - GAP.length);
    const shown = bar < NARROWEST_BAR ? [name, end] : [name, barOf(partOf(disk), bar), end];
    return shown.join(GAP).trimEnd();
  });
}

/** In the order in which they are shown: percent, bytes, bytes a second, time left. */
type Facts = readonly [string, string, string, string];
/** What is left out where there is no room, what says least first. */
const DISPENSABLE = [1, 2, 3];

function factsOf(disk: Disk, now: number): Facts {
  const { pace, total, isAway } = disk;
  const { readPerSecond, secondsLeft } = pace.at(total, now);
  const part = partOf(disk);
  const start = [`${Math.floor(part * 100)}%`, human(pace.readBytes)] as const;
  if (isAway) return [...start, "connection lost", ""];
  return part === 1 ? [...start, "", ""] : [...start, `${human(readPerSecond)}/s`, leftText(secondsLeft)];
}

/** Columns of the facts, as many as fit. */
function aligned(rows: readonly Facts[], columns: number): string[] {
  const widths = [0, 1, 2, 3].map((column) =>
    Math.max(0, ...rows.map((facts) => (facts[column] ?? "").length)),
  );
  const left = new Set([0, 1, 2, 3].filter((column) => (widths[column] ?? 0) > 0));
  const taken = (): number => [...left].reduce((sum, column) => sum + GAP.length + (widths[column] ?? 0), 0);
  for (const column of DISPENSABLE) if (taken() > columns) left.delete(column);
  return rows.map((facts) =>
    [...left].map((column) => (facts[column] ?? "").padStart(widths[column] ?? 0)).join(GAP),
  );
}

function partOf({ pace, total }: Disk): number {
  return total === 0 ? 1 : Math.min(1, pace.position / total);
}

function barOf(part: number, columns: number): string {
  const full = Math.floor(part * columns);
  return "█".repeat(full) + "░".repeat(columns - full);
}

/** Cut in its middle where it is longer: names mostly differ at both ends. */
function padded(name: string, width: number): string {
  const length = stringWidth(name);
  if (length <= width) return name + " ".repeat(width - length);
  const tail = Math.floor((width - 1) / 2);
  const cut = `${sliceAnsi(name, 0, width - 1 - tail)}…${tail > 0 ? sliceAnsi(name, length - tail) : ""}`;
  return cut + " ".repeat(Math.max(0, width - stringWidth(cut)));
}

function leftText(seconds: number | undefined): string {
  if (seconds === undefined) return "";
  if (seconds >= 100 * 3600) return "days left";
  const whole = Math.ceil(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const tail = String(whole % 60).padStart(2, "0");
  return hours > 0 ? `${hours}:${String(minutes).padStart(2, "0")}:${tail} left` : `${minutes}:${tail} left`;
}
