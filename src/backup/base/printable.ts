/** Control characters (C0, DEL, C1), bidi marks and other invisible characters, and separators of lines. */
export const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** The text as one line that a terminal shows as it is: `\u{1b}` takes the place of an escape character. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`);
}

/** The same of text with several lines. */
export function printableLines(text: string): string {
  return text.split("\n").map(printable).join("\n");
}
