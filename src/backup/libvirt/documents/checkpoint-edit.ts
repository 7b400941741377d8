import { formatTree, parseTree } from "./xml-tree.js";

/**
 * Removes the bitmap of one disk from the XML of a checkpoint, with the domain's definition in it. The
 * result is undefined if no other disk has a bitmap.
 */
export function withoutBitmap(xml: string, disk: string): string | undefined {
  const checkpoint = parseTree(xml, "domaincheckpoint");
  const disks = checkpoint.all("disks", "disk");
  for (const each of disks) {
    if (each.attributeText("name") !== disk) continue;
    each.removeAttribute("bitmap", "size");
    each.setAttribute("checkpoint", "no");
  }
  return disks.some((each) => each.attribute("checkpoint") === "bitmap") ? formatTree(checkpoint) : undefined;
}
