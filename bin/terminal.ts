/**
 * All text that the command prints goes through here. Names, descriptions and messages come from servers,
 * repositories, guests and libvirt, so any of them may have been written to deceive the reader of a terminal:
 * to erase a warning, to forge a line, to turn a name around. Nothing else in bin writes to stdout or stderr,
 * except ResultStream, which gets only numbers and words of our own, and the display of progress, which
 * escapes names in the same way.
 */

import { styleText } from "node:util";
import { printable, UNPRINTABLE } from "../src/backup/base/printable.js";

/** A part of a line; the colour appears only on a terminal. */
export type Span = string | { readonly text: string; readonly colour: "green" | "yellow" | "red" };

/** When colours are shown: where it is a terminal that can, or in any case. */
export type ColourChoice = "auto" | "always" | "never";

/** What stands below all lines on the terminal: it is taken away while a line is printed. */
interface Below {
  clear(): void;
  show(): void;
}

/** One line without its end. A line end inside of it is escaped, so no text can forge a line of its own. */
export type Line = string | readonly Span[];

type Stream = typeof process.stdout | typeof process.stderr;

let colours: ColourChoice = "auto";
let below: Below | undefined;

/** What the user wants of all lines from here on. */
export function chooseColours(choice: ColourChoice): void {
  colours = choice;
}

/** From here on this is below all lines; undefined: nothing is. */
export function showBelow(what: Below | undefined): void {
  below = what;
}

/** Whether it is a terminal on which lines can be replaced. */
export function isScreen(stream: Stream): boolean {
  return stream.isTTY === true && process.env["TERM"] !== "dumb";
}

export function printLines(stream: Stream, lines: readonly Line[]): void {
  if (lines.length === 0) return;
  const isColoured = hasColours(stream);
  const show = (span: Span): string => {
    if (typeof span === "string") return printable(span);
    const text = printable(span.text);
    return isColoured ? styleText(span.colour, text, { validateStream: false }) : text;
  };
  const texts = lines.map((line) => (typeof line === "string" ? [line] : line).map(show).join(""));
  print(stream, `${texts.join("\n")}\n`);
}

function print(stream: Stream, text: string): void {
  below?.clear();
  stream.write(text);
  below?.show();
}

/** https://no-color.org, and what was chosen, which wins. */
function hasColours(stream: Stream): boolean {
  if (colours !== "auto") return colours === "always";
  return isScreen(stream) && (process.env["NO_COLOR"] ?? "") === "";
}

/** Prints text of our own that may have several lines, such as help. */
export function printText(stream: Stream, text: string): void {
  printLines(stream, text.replace(/\n$/, "").split("\n"));
}

/** Prints one JSON document. What a terminal would not show as it is stands there as a JSON escape. */
export function printJson(stream: Stream, value: unknown): void {
  const text = JSON.stringify(value, null, 2);
  print(stream, `${text.replace(UNPRINTABLE, (found) => (found === "\n" ? found : asJsonEscape(found)))}\n`);
}

function asJsonEscape(character: string): string {
  const units = Array.from({ length: character.length }, (_, index) => character.charCodeAt(index));
  return units.map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`).join("");
}
