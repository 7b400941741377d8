/** Small parts of the page. */
import type { ComponentChildren } from "preact";
import { printable } from "../../src/backup/base/printable.js";
import { human } from "../output.js";
import { localTime } from "../times.js";

/** A text that may be anybody's: it can't change the direction of what is around it, nor hide. */
export function Name({ text }: { readonly text: string }) {
  return <bdi>{printable(text)}</bdi>;
}

/** A moment in the local time zone. */
export function Time({ iso }: { readonly iso: string }) {
  return <time dateTime={iso}>{localTime(iso)}</time>;
}

/** A cell of a table. */
export function Amount({ bytes }: { readonly bytes: number }) {
  return <td class="number">{human(bytes)}</td>;
}

/** A cell of a table: bytes for each day, if they are known. */
export function Rate({ bytes }: { readonly bytes: number | null }) {
  return <td class="number">{rateText(bytes)}</td>;
}

export function rateText(bytes: number | null): string {
  return bytes === null ? "–" : human(Math.round(bytes));
}

/** What may be wider than the screen: it scrolls by itself, by keyboard too, and the page does not. */
export function Scroll({
  label,
  children,
}: {
  readonly label: string;
  readonly children: ComponentChildren;
}) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls has to be reached by the keyboard
    <section class="scroll" aria-label={printable(label)} tabIndex={0}>
      {children}
    </section>
  );
}
