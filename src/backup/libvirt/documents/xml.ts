/**
 * Parses libvirt's XML into checked values. XML from a user is not trusted more than other input: it must
 * have no document type (and so no entities of its own) and the expected root, its size and depth are
 * limited, and every value passes a schema. `xml-source.ts` says what libvirt may write.
 *
 * The parser turns an element into an object: its attributes under `$`, its children by name (always a list
 * for elements that may occur several times), text alone into a string.
 *
 *     <disk name='vda'><scratch file='/s'/></disk> -> { $: { name: "vda" }, scratch: { $: { file: "/s" } } }
 *     <parent><name>cp1</name></parent>            -> { name: "cp1" }
 */

import { XMLParser } from "fast-xml-parser";
import { z } from "zod";
import { BackupError, messageOf } from "../../base/errors.js";
import { LIBVIRT_NAMES, readableXml } from "./xml-source.js";

/** A kind of document that libvirt writes. */
export interface DocumentKind {
  /** The error code for a document as a whole; a faulty element adds its name: `E_BACKUP_XML_SERVER`. */
  readonly code: string;
  readonly root: string;
  /** The command that prints a valid document. */
  readonly source: string;
}

/** A domain definition takes some 10 kB. The limit leaves room for a thousand disks. */
const MAX_CHARACTERS = 4 * 1024 * 1024;

/** Elements that may occur several times. */
const LISTS: ReadonlySet<string> = new Set(["disk", "controller", "seclabel", "secmodel", "baselabel"]);

const parser = new XMLParser({
  ...LIBVIRT_NAMES,
  ignoreAttributes: false,
  attributesGroupName: "$",
  attributeNamePrefix: "",
  // Every value is a string until a schema says otherwise: a disk may be called "1e3".
  parseTagValue: false,
  parseAttributeValue: false,
  // Names are taken as they are, blanks included.
  trimValues: false,
  // Also decodes numeric references, as libvirt writes line ends (&#10;) in attributes.
  htmlEntities: true,
  isArray: (name, _path, _isLeaf, isAttribute) => LISTS.has(name) && !isAttribute,
});

/**
 * Parses a document and validates its root element.
 * @throws {BackupError} code `kind.code`, or that followed by the name of the faulty element
 */
export function parseDocument<T>(kind: DocumentKind, xml: string, schema: z.ZodType<T>): T {
  if (xml.length > MAX_CHARACTERS) {
    throw malformed(kind, [], `has ${xml.length} characters, more than ${MAX_CHARACTERS}`);
  }
  const tree = parseTree(kind, readable(kind, xml));
  const roots = Object.keys(tree).filter((name) => name !== "#text");
  if (roots.length !== 1 || roots[0] !== kind.root) {
    throw malformed(kind, [], `has the root ${roots.map((root) => `<${root}>`).join("") || "(none)"}`);
  }
  const parsed = schema.safeParse(tree[kind.root]);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw malformed(kind, issue?.path ?? [], issue?.message ?? "is not valid");
}

function readable(kind: DocumentKind, xml: string): string {
  try {
    return readableXml(xml);
  } catch (cause) {
    throw malformed(kind, [], messageOf(cause), cause);
  }
}

function parseTree(kind: DocumentKind, xml: string): Record<string, unknown> {
  try {
    return z.record(z.string(), z.unknown()).parse(parser.parse(xml, true));
  } catch (cause) {
    const reason = messageOf(cause);
    throw malformed(kind, [], `is not well-formed XML: ${reason}`, cause);
  }
}

/**
 * The error for a document that breaks a rule. `path` leads from the root to the faulty place, as zod reports
 * it: element names, list indices, and `$` before the name of an attribute.
 */
export function malformed(
  kind: DocumentKind,
  path: readonly PropertyKey[],
  reason: string,
  cause?: unknown,
): BackupError {
  const attributeMark = path.indexOf("$");
  const elements = (attributeMark < 0 ? path : path.slice(0, attributeMark)).map(String);
  const attribute = attributeMark < 0 ? undefined : path[attributeMark + 1];
  const element = elements.findLast((name) => !/^\d+$/.test(name));
  const place = elements.map((name) => (/^\d+$/.test(name) ? `[${name}]` : `<${name}>`)).join("");
  const where = `${place || "the document"}${attribute === undefined ? "" : `, attribute ${String(attribute)},`}`;
  return new BackupError(
    element === undefined ? kind.code : `${kind.code}_${element.toUpperCase()}`,
    `the <${kind.root}> XML can't be used: ${where} ${reason}. Give it exactly as \`${kind.source}\` prints it`,
    { cause, details: { element: element ?? kind.root, ...(attribute === undefined ? {} : { attribute }) } },
  );
}

/** An element with attributes and children, both optional: `<disk/>` parses to an empty string. */
export function element<A extends z.ZodRawShape, C extends z.ZodRawShape>(attributes: A, children: C) {
  return z.preprocess(
    withAttributes,
    z.object({ ...children, $: z.object(attributes) }, wrong("an element")),
  );
}

function withAttributes(value: unknown): unknown {
  if (typeof value === "string" && value.trim() === "") return { $: {} };
  return typeof value === "object" && !Array.isArray(value) ? { $: {}, ...value } : value;
}

/** Text that isn't empty. */
export const text = z.string(wrong("text")).min(1, "is empty");

export function oneOf<const T extends readonly [string, ...string[]]>(...values: T) {
  return z.enum(values, wrong(values.join(" or ")));
}

export const yesNo = oneOf("yes", "no").transform((value) => value === "yes");

/** A whole number that is written in decimal digits. */
export const wholeNumber = z
  .string(wrong("a whole number"))
  .regex(/^\d{1,15}$/, "must be a whole number")
  .transform(Number);

/** The messages for a value that isn't `what`: the end of a sentence that begins with the value's place. */
function wrong(what: string) {
  return {
    error: ({ input }: { readonly input?: unknown }): string => {
      if (input === undefined) return "is missing";
      return Array.isArray(input) ? "is there more than once" : `must be ${what}`;
    },
  };
}
