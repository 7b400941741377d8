/** Characters of another program's words that a message holds: they say why at the end. */
const MOST = 4000;

/** What another program printed, as one line of a message. Its time is linear in the text, blanks or not. */
export function oneLine(text: string, between = "; "): string {
  const lines = text
    .slice(-MOST)
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
  return (text.length > MOST ? ["…", ...lines] : lines).join(between);
}
