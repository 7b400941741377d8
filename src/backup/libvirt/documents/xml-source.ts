/**
 * XML as libvirt writes it, made ready for fast-xml-parser, which has its own ideas of names and entities.
 *
 * Most of a document is made by libvirt, but `<metadata>`, `<title>` and `<description>` are the user's, and
 * libvirt (tried with 9.0) writes them as they were given:
 *
 *     in text and attributes    & < > " ' as entities, and &#9; &#10; &#13; in attributes
 *     in <metadata> only        comments, CDATA sections, processing instructions, elements and attributes
 *                               of any name and up to 256 deep, references to entities that it does not
 *                               declare
 *     nowhere                   <!DOCTYPE> and other declarations, but as text in any of those places
 */

/**
 * The parser refuses or renames what every JavaScript object has (`constructor`), and metadata may use it.
 */
const MARK = ".";

/** Options of every parser here. What `marked` does to names `unmarked` undoes. */
export const LIBVIRT_NAMES = {
  // libxml2 gives up after 256.
  maxNestedTags: 300,
  transformTagName: marked,
  transformAttributeName: marked,
} as const;

/** No name of XML begins with the mark, and the parser may call this twice. */
function marked(name: string): string {
  return name in {} || name === "prototype" ? `${MARK}${name}` : name;
}

export function unmarked(name: string): string {
  return name.startsWith(MARK) ? name.slice(MARK.length) : name;
}

/**
 * A stretch of text, a comment, a CDATA section, a processing instruction, or a tag; nothing else may occur.
 */
const PART =
  /[^<]+|<!--[\s\S]*?-->|<!\[CDATA\[[\s\S]*?\]\]>|(<\?[\s\S]*?\?>)|<\/?[^\s<>"'/!?=][^<>"']*(?:(?:"[^<"]*"|'[^<']*')[^<>"']*)*>/y;

/**
 * The document without its XML declaration and other processing instructions.
 * @throws {SyntaxError} it has a declaration such as `<!DOCTYPE>`, or is not well-formed
 */
export function readableXml(xml: string): string {
  const source = xml.replace(/^\uFEFF/, "");
  const kept: string[] = [];
  let at = 0;
  while (at < source.length) {
    PART.lastIndex = at;
    const found = PART.exec(source);
    if (!found) throw new SyntaxError(faultAt(source, at));
    if (found[1] === undefined) kept.push(found[0]);
    at = PART.lastIndex;
  }
  return kept.join("");
}

function faultAt(source: string, at: number): string {
  const start = source.slice(at, at + 12);
  if (/^<![a-z]/i.test(start)) return "has a document type, which libvirt never writes";
  const line = source.slice(0, at).split("\n").length;
  return `is not well-formed XML: what begins with "${start}" in line ${line} has no end`;
}
