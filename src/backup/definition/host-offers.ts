/** What libvirt says of the guests that a host can run, read from its two documents of capabilities. */

import { parseTree, type XmlElement } from "../libvirt/documents/xml-tree.js";
import type { Machine } from "./nearest-machine.js";

/** What there is for one architecture. */
interface ArchOffers {
  readonly emulators: ReadonlySet<string>;
  /** `kvm`, `qemu`. */
  readonly types: ReadonlySet<string>;
  readonly machines: readonly Machine[];
}

/** @returns undefined: the host runs no guests of that architecture */
export function archOffers(capabilities: string, name: string): ArchOffers | undefined {
  const found = parseTree(capabilities, "capabilities")
    .all("guest", "arch")
    .filter((arch) => arch.attributeText("name") === name);
  if (found.length === 0) return undefined;
  const parts = [...found, ...found.flatMap((arch) => arch.all("domain"))];
  return {
    emulators: new Set(parts.flatMap((part) => part.all("emulator").map(({ text }) => text))),
    types: new Set(
      found.flatMap((arch) => arch.all("domain")).map((each) => each.attributeText("type") ?? ""),
    ),
    machines: parts.flatMap((part) =>
      part.all("machine").map((machine) => ({
        name: machine.text,
        canonical: machine.attributeText("canonical"),
        isDeprecated: machine.attributeText("deprecated") === "yes",
      })),
    ),
  };
}

/** `<domainCapabilities>`: what a guest on one machine type of one emulator can have. */
export class DomainOffers {
  readonly #tree: XmlElement;

  constructor(xml: string) {
    this.#tree = parseTree(xml, "domainCapabilities");
  }

  /** Whether the element at `path` is supported; undefined: libvirt doesn't say. */
  supports(...path: readonly string[]): boolean | undefined {
    const said = this.#tree.first(...path)?.attributeText("supported");
    return said === undefined ? undefined : said === "yes";
  }

  /** The values of an `<enum>` below the element at `path`; undefined: libvirt doesn't say. */
  values(path: readonly string[], name: string): ReadonlySet<string> | undefined {
    const found = this.#tree.first(...path);
    if (found?.attributeText("supported") === "no") return new Set();
    const list = found?.all("enum").find((each) => each.attributeText("name") === name);
    return list && new Set(list.all("value").map(({ text }) => text));
  }

  /** Whether a mode of processors is supported: `host-model`; undefined: libvirt doesn't say. */
  cpuMode(mode: string): boolean | undefined {
    const found = this.#mode(mode)?.attributeText("supported");
    return found === undefined ? undefined : found === "yes";
  }

  /** Models of processors that a definition can name; undefined: libvirt doesn't say. */
  get cpuModels(): ReadonlySet<string> | undefined {
    const models = this.#mode("custom")?.all("model") ?? [];
    return models.length === 0 ? undefined : new Set(models.map(({ text }) => text));
  }

  #mode(name: string): XmlElement | undefined {
    return this.#tree.all("cpu", "mode").find((mode) => mode.attributeText("name") === name);
  }
}
