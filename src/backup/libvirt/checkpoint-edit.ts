import { XMLBuilder, XMLParser } from "fast-xml-parser";
import { z } from "zod";

/**
 * Keeps elements in order and text unchanged. Each element is an object with its name and, under `:@`, its
 * attributes.
 */
const AS_IT_IS = {
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: "",
  parseTagValue: false,
  parseAttributeValue: false,
  trimValues: false,
  processEntities: false,
  suppressBooleanAttributes: false,
  suppressEmptyNode: true,
};

const attributes = z.record(z.string(), z.string());
const nodes = z.array(z.record(z.string(), z.unknown()));

/**
 * Removes the bitmap of one disk from the XML of a checkpoint, as `virsh checkpoint-dumpxml` prints it. The
 * result is undefined if no other disk has a bitmap.
 */
export function withoutBitmap(xml: string, disk: string): string | undefined {
  const document = nodes.parse(new XMLParser(AS_IT_IS).parse(xml));
  const checkpoint = childrenOf(document, "domaincheckpoint");
  const disks = childrenOf(checkpoint, "disks").filter((node) => "disk" in node);
  for (const node of disks) {
    if (attributes.parse(node[":@"])["name"] === disk) node[":@"] = { name: disk, checkpoint: "no" };
  }
  const left = disks.some((node) => attributes.parse(node[":@"])["checkpoint"] === "bitmap");
  return left ? new XMLBuilder(AS_IT_IS).build(document) : undefined;
}

/** Returns the child objects themselves, not copies: changing them changes the document. */
function childrenOf(parents: readonly Record<string, unknown>[], name: string): Record<string, unknown>[] {
  const children = parents.find((node) => name in node)?.[name];
  return Array.isArray(children) ? (children as Record<string, unknown>[]) : [];
}
