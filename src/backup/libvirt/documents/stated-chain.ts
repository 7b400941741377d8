/** What a domain's definition says about the files of a disk below its image. */
import { parseTree, type XmlElement } from "./xml-tree.js";

/** The file or block device of an image, or another kind of storage. */
interface StatedSource {
  /** `file`, `block`, `network`, … */
  readonly type: string;
  /** Absent unless it is a file or a block device. */
  readonly path: string | undefined;
  /** The format as QEMU calls it; absent if the definition leaves it open. */
  readonly format: string | undefined;
}

/** What one image of a chain refers to, as far as the definition states it. */
export interface StatedLinks {
  /** The file that holds the image's data, if that is another file. */
  readonly dataFile: string | undefined;
  /** The image below; `null`: the definition ends the chain here; undefined: it says nothing. */
  readonly backing: StatedImage | null | undefined;
}

export interface StatedImage extends StatedSource, StatedLinks {}

/**
 * @param xml a domain's definition, of a domain that is off: while it runs, libvirt adds what it found itself
 * @param target the disk's name in the domain: `vda`
 */
export function statedLinks(xml: string, target: string): StatedLinks {
  const disk = parseTree(xml, "domain")
    .all("devices", "disk")
    .find((each) => each.first("target")?.attributeText("dev") === target);
  return disk ? linksOf(disk) : { dataFile: undefined, backing: undefined };
}

function linksOf(element: XmlElement): StatedLinks {
  const data = element.first("source", "dataStore", "source");
  const below = element.first("backingStore");
  return {
    dataFile: data?.attributeText("file") ?? data?.attributeText("dev"),
    backing: below && (below.elements.length === 0 ? null : imageOf(below)),
  };
}

function imageOf(element: XmlElement): StatedImage {
  const source = element.first("source");
  return {
    type: element.attribute("type") ?? "file",
    path: source?.attributeText("file") ?? source?.attributeText("dev"),
    format: element.first("format")?.attributeText("type"),
    ...linksOf(element),
  };
}
