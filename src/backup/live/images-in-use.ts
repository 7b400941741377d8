/** Which files a domain is on, as it runs and as it will at its next start. */
import { stat } from "node:fs/promises";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { parseTree, type XmlElement } from "../libvirt/documents/xml-tree.js";
import { type DomainRun, sourcesOf } from "../libvirt/domain-run.js";

export class ImagesInUse {
  readonly #running: XmlElement;
  readonly #next: XmlElement;

  private constructor(running: XmlElement, next: XmlElement) {
    this.#running = running;
    this.#next = next;
  }

  /** Every method of `run` that this calls may reject. */
  static async of(run: DomainRun): Promise<ImagesInUse> {
    const running = parseTree(await run.definition(), "domain");
    return new ImagesInUse(running, parseTree(await run.wholeDefinition(), "domain"));
  }

  /** If it does not, nobody says what its images are based on. */
  get runs(): boolean {
    return this.#running.attribute("id") !== undefined;
  }

  /** Whether a disk is on that file now, or on something that is based on it. */
  isOn(disk: string, path: string): boolean {
    return filesOf(sourcesOf(this.#running, disk)).includes(path);
  }

  /** The same of its next start. */
  willBeOn(disk: string, path: string): boolean {
    return filesOf(sourcesOf(this.#next, disk)).includes(path);
  }

  /** Whether any disk has a file of the folder, by any path: in its chain, or as what it is copied into. */
  async has(folder: HeldFolder, name: string): Promise<boolean> {
    const file = await folder.find(name);
    const disks = [this.#running, this.#next].flatMap((domain) => [...domain.all("devices", "disk")]);
    for (const path of filesOf(disks.flatMap(sourcesIn))) {
      if (path === `${folder.realPath}/${name}`) return true;
      const found = await stat(path).catch((error: unknown) => {
        if (isMissing(error)) return undefined;
        throw error;
      });
      if (file && found && found.ino === file.ino && found.dev === file.dev) return true;
    }
    return false;
  }
}

function filesOf(sources: readonly XmlElement[]): string[] {
  return sources.flatMap((source) => source.attributeText("file") ?? []);
}

function sourcesIn(element: XmlElement): XmlElement[] {
  return element.elements.flatMap((each) => [...(each.name === "source" ? [each] : []), ...sourcesIn(each)]);
}
