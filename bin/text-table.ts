/** A table for the terminal: as wide as it needs to be, and no wider than the terminal. */
import stringWidth from "string-width";
import { printable } from "../src/backup/base/printable.js";
import type { Line, Span } from "./terminal.js";

interface Column {
  readonly head: string;
  /** Numbers. */
  readonly right?: true;
  /** Left out where the terminal is too narrow; the highest goes first. */
  readonly spare?: number;
  /** Shortened where the terminal is too narrow. */
  readonly cut?: true;
}

const GAP = "  ";
/** Columns that a shortened text has at least. */
const LEAST = 8;

/**
 * @param rows a text for each column
 * @param width of the terminal in characters; undefined: there is none, and nothing is left out
 */
export function tableLines(
  columns: readonly Column[],
  rows: readonly (readonly Span[])[],
  width = process.stdout.isTTY ? process.stdout.columns : undefined,
): Line[] {
  const texts = rows.map((row) => row.map(textOf));
  const widths = columns.map(({ head }, i) =>
    Math.max(stringWidth(head), ...texts.map((row) => stringWidth(row[i] ?? ""))),
  );
  const most = width ?? Number.POSITIVE_INFINITY;
  let shown = columns.map((_, i) => i);
  const needed = (): number =>
    shown.reduce((sum, i) => sum + (widths[i] ?? 0), 0) + GAP.length * (shown.length - 1);
  const spares = columns.flatMap(({ spare }, i) => (spare === undefined ? [] : [{ spare, i }]));
  for (const { i } of spares.toSorted((a, b) => b.spare - a.spare)) {
    if (needed() > most) shown = shown.filter((other) => other !== i);
  }
  for (const i of shown) {
    if (needed() <= most || !columns[i]?.cut) continue;
    widths[i] = Math.max(LEAST, (widths[i] ?? 0) - (needed() - most));
  }
  const lineOf = (cells: readonly Span[]): Line =>
    shown.flatMap((i, at) => {
      const cell = cells[i] ?? "";
      const text = cutTo(textOf(cell), widths[i] ?? 0);
      const space = " ".repeat(Math.max(0, (widths[i] ?? 0) - stringWidth(text)));
      const span = typeof cell === "string" ? text : { ...cell, text };
      const isLast = at === shown.length - 1;
      if (columns[i]?.right) return [space, span, isLast ? "" : GAP];
      return [span, isLast ? "" : `${space}${GAP}`];
    });
  return [lineOf(columns.map(({ head }) => head)), ...rows.map(lineOf)];
}

function textOf(cell: Span): string {
  return printable(typeof cell === "string" ? cell : cell.text);
}

/** The beginning of a text, in whole characters as people see them. */
function cutTo(text: string, width: number): string {
  if (stringWidth(text) <= width) return text;
  let kept = "";
  for (const { segment } of new Intl.Segmenter().segment(text)) {
    if (stringWidth(kept + segment) > width - 1) break;
    kept += segment;
  }
  return `${kept}…`;
}
