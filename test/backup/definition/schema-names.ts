/**
 * Definitions that have a value wherever libvirt's own schema of the domain format has room for one, so that
 * nothing that libvirt knows is forgotten.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseTree, XmlElement } from "../../../src/backup/libvirt/documents/xml-tree.js";

const SCHEMAS = "/usr/share/libvirt/schemas";
const FILES = [
  ...["basictypes", "storagecommon", "networkcommon", "cputypes", "nwfilter_params", "privatedata"],
  ...["domaincommon", "domainoverrides"],
];
const DEEPEST = 7;

/** Whether the schemas are installed, which come with libvirt's daemon. */
export const hasSchemas = existsSync(join(SCHEMAS, "domaincommon.rng"));

interface Shape {
  /** The values that an attribute may have, if they are listed. */
  readonly attributes: Map<string, string[]>;
  readonly elements: Map<string, XmlElement[]>;
}

export class DomainSchema {
  readonly #defines = new Map<string, XmlElement[]>();

  constructor() {
    for (const file of FILES) {
      const grammar = parseTree(readFileSync(join(SCHEMAS, `${file}.rng`), "utf8"), "grammar");
      for (const define of grammar.all("define")) {
        const name = define.attributeText("name") ?? "";
        this.#defines.set(name, [...(this.#defines.get(name) ?? []), define]);
      }
    }
  }

  /** Names of the elements that a domain's `<devices>` may have, or a domain itself. */
  childrenOf(define: "devices" | "domain"): string[] {
    const top = [...this.#shapeOf(this.#defines.get(define) ?? []).elements.values()].flat();
    return [...this.#shapeOf(top).elements.keys()];
  }

  /**
   * An element with all attributes and elements that it can have. Every value is `value`, but for attributes
   * with listed values: those have the one at `variant`, counted around.
   */
  filled(define: "devices" | "domain", name: string, value: string, variant: number): XmlElement {
    const top = [...this.#shapeOf(this.#defines.get(define) ?? []).elements.values()].flat();
    const parts = this.#shapeOf(top).elements.get(name) ?? [];
    return this.#fill(name, parts, value, variant, 0);
  }

  #fill(name: string, parts: XmlElement[], value: string, variant: number, depth: number): XmlElement {
    const element = XmlElement.create(name);
    const { attributes, elements } = this.#shapeOf(parts);
    for (const [attribute, listed] of attributes) {
      element.setAttribute(attribute, listed[variant % listed.length] ?? value);
    }
    element.setText(value);
    if (depth === DEEPEST) return element;
    for (const [child, its] of elements) {
      if (child !== name) element.replace(this.#fill(child, its, value, variant, depth + 1));
    }
    return element;
  }

  #shapeOf(parts: readonly XmlElement[]): Shape {
    const shape: Shape = { attributes: new Map(), elements: new Map() };
    for (const part of parts) this.#collect(part, shape, new Set());
    return shape;
  }

  #collect(part: XmlElement, shape: Shape, seen: ReadonlySet<string>): void {
    for (const child of part.elements) {
      const name = child.attributeText("name") ?? "";
      // An element of any name, as in metadata.
      if (child.name === "element" && name === "") continue;
      if (child.name === "attribute") {
        const listed = valuesIn(child);
        shape.attributes.set(name, [...(shape.attributes.get(name) ?? []), ...listed]);
      } else if (child.name === "element") {
        shape.elements.set(name, [...(shape.elements.get(name) ?? []), child]);
      } else if (child.name === "ref") {
        if (seen.has(name)) continue;
        for (const define of this.#defines.get(name) ?? []) {
          this.#collect(define, shape, new Set([...seen, name]));
        }
      } else {
        this.#collect(child, shape, seen);
      }
    }
  }
}

function valuesIn(part: XmlElement): string[] {
  return part.elements.flatMap((child) => (child.name === "value" ? [child.text] : valuesIn(child)));
}
