/**
 * A document as a tree that can be changed and written again. What isn't changed stays as it is and in order,
 * including elements that are unknown here. Values are kept as written, with their entities; `setAttribute`
 * and `setText` escape.
 */
import { XMLBuilder, XMLParser } from "fast-xml-parser";
import { LIBVIRT_NAMES, readableXml, unmarked } from "./xml-source.js";

const SHARED = {
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: "",
  processEntities: false,
  commentPropName: "#comment",
  cdataPropName: "#cdata",
} as const;

const parser = new XMLParser({
  ...SHARED,
  ...LIBVIRT_NAMES,
  parseTagValue: false,
  parseAttributeValue: false,
  trimValues: false,
});

const builder = new XMLBuilder({
  ...SHARED,
  maxNestedTags: LIBVIRT_NAMES.maxNestedTags,
  suppressEmptyNode: true,
  suppressBooleanAttributes: false,
});

/**
 * The parser's form: an element under its name, its attributes under `:@`, text and the like under `#` names.
 */
type Raw = Record<string, unknown>;
const ATTRIBUTES = ":@";

/** Text, a comment or a CDATA section, as the parser returns it. */
interface Other {
  readonly raw: Raw;
}

export class XmlElement {
  readonly name: string;
  readonly #attributes: Map<string, string>;
  #children: (XmlElement | Other)[];

  private constructor(name: string, attributes: Map<string, string>, children: (XmlElement | Other)[]) {
    this.name = name;
    this.#attributes = attributes;
    this.#children = children;
  }

  static create(name: string, attributes: Readonly<Record<string, string>> = {}): XmlElement {
    const element = new XmlElement(name, new Map(), []);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  /** The value as written, entities included; undefined if there is no such attribute. */
  attribute(name: string): string | undefined {
    return this.#attributes.get(name);
  }

  /** The value with its entities resolved. */
  attributeText(name: string): string | undefined {
    const value = this.attribute(name);
    return value === undefined ? undefined : unescaped(value);
  }

  get attributeNames(): readonly string[] {
    return [...this.#attributes.keys()];
  }

  setAttribute(name: string, value: string): void {
    this.#attributes.set(name, escaped(value));
  }

  removeAttribute(...names: readonly string[]): void {
    for (const name of names) this.#attributes.delete(name);
  }

  get elements(): readonly XmlElement[] {
    return this.#children.filter((child) => child instanceof XmlElement);
  }

  /** The child elements at the end of a path of names. */
  all(...path: readonly string[]): readonly XmlElement[] {
    const [first, ...rest] = path;
    const found = this.elements.filter(({ name }) => name === first);
    return rest.length === 0 ? found : found.flatMap((child) => child.all(...rest));
  }

  first(...path: readonly string[]): XmlElement | undefined {
    return this.all(...path)[0];
  }

  /** The element's own text without the blanks around it; text of child elements doesn't count. */
  get text(): string {
    const texts = this.#children.map((child) => (child instanceof XmlElement ? "" : child.raw["#text"]));
    return unescaped(texts.filter((text) => typeof text === "string").join("")).trim();
  }

  setText(text: string): void {
    this.#children = [{ raw: { "#text": escaped(text) } }];
  }

  clear(): void {
    this.#children = [];
  }

  /** Puts `child` in the place of the child element of that name, or at the end if there is none. */
  replace(child: XmlElement): void {
    const at = this.#children.findIndex((old) => old instanceof XmlElement && old.name === child.name);
    if (at < 0) this.#children.push(child);
    else this.#children[at] = child;
  }

  append(child: XmlElement): void {
    this.#children.push(child);
  }

  /** Removes the child elements for which `fits` is true, and the line breaks before them. */
  removeWhere(fits: (child: XmlElement) => boolean): void {
    const kept: (XmlElement | Other)[] = [];
    for (const child of this.#children) {
      if (!(child instanceof XmlElement) || !fits(child)) kept.push(child);
      else if (isBlank(kept.at(-1))) kept.pop();
    }
    this.#children = kept;
  }

  remove(...names: readonly string[]): void {
    this.removeWhere(({ name }) => names.includes(name));
  }

  /** Removes all comments, and makes CDATA sections text, so that `text` is all that another parser sees. */
  simplify(): void {
    this.#children = this.#children.flatMap((child): (XmlElement | Other)[] => {
      if (child instanceof XmlElement) {
        child.simplify();
        return [child];
      }
      if (typeof child.raw["#text"] === "string") return [child];
      const section = child.raw["#cdata"] as readonly Raw[] | undefined;
      const texts = section?.map((part) => part["#text"]).filter((part) => typeof part === "string") ?? [];
      return texts.map((text) => ({ raw: { "#text": escaped(text) } }));
    });
  }

  /** @internal */
  static of(name: string, raw: Raw): XmlElement {
    const attributes = Object.entries((raw[ATTRIBUTES] ?? {}) as Record<string, string>);
    const children = (raw[name] as Raw[]).map((child) => {
      const key = Object.keys(child).find((candidate) => candidate !== ATTRIBUTES) ?? "#text";
      if (!key.startsWith("#")) return XmlElement.of(key, child);
      const text = child["#text"];
      return { raw: typeof text === "string" ? { "#text": resolvable(text) } : child };
    });
    const values = attributes.map(([key, value]) => [unmarked(key), resolvable(value)] as const);
    return new XmlElement(unmarked(name), new Map(values), children);
  }

  /** @internal */
  toRaw(): Raw {
    // The builder puts values between double quotes, whichever quotes they had before.
    const attributes = [...this.#attributes].map(([key, value]) => [key, value.replaceAll('"', "&quot;")]);
    return {
      [this.name]: this.#children.map((child) => (child instanceof XmlElement ? child.toRaw() : child.raw)),
      ...(attributes.length > 0 ? { [ATTRIBUTES]: Object.fromEntries(attributes) } : {}),
    };
  }
}

/** @param xml well-formed, with one root called `root`: see `parseDocument` */
export function parseTree(xml: string, root: string): XmlElement {
  const nodes = parser.parse(readableXml(xml)) as Raw[];
  const raw = nodes.find((node) => Object.hasOwn(node, root));
  if (!raw) throw new RangeError(`the document has no root <${root}>`);
  return XmlElement.of(root, raw);
}

export function formatTree(root: XmlElement): string {
  return `${builder.build([root.toRaw()])}\n`;
}

function isBlank(child: XmlElement | Other | undefined): boolean {
  if (child === undefined || child instanceof XmlElement) return false;
  const text = child.raw["#text"];
  return typeof text === "string" && text.trim() === "";
}

function escaped(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&apos;");
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };

/** References that mean nothing without a document type become text; libvirt would not read them again. */
function resolvable(value: string): string {
  return value.replaceAll(/&(?!(?:#x[0-9a-fA-F]+|#\d+|lt|gt|quot|apos|amp);)/g, "&amp;");
}

/** Resolves XML's five entities and characters given by number. */
function unescaped(text: string): string {
  return text.replaceAll(/&(?:#x([0-9a-f]+)|#(\d+)|(lt|gt|quot|apos|amp));/gi, (whole, hex, digits, name) => {
    if (name !== undefined) return ENTITIES[name] ?? whole;
    const code = hex === undefined ? Number(digits) : Number.parseInt(hex, 16);
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}
