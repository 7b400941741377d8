/** What the definition of a guest says that decides whether it can run from a point. */
import { PreconditionError } from "../base/errors.js";
import { formatTree, parseTree, type XmlElement } from "../libvirt/documents/xml-tree.js";

/**
 * What is filled into a disk that forgets what is written, or that can't be written to, would not last.
 * @throws {PreconditionError} `E_LIVE_UNSUPPORTED`
 */
export function refuseUnfillable(xml: string, disks: readonly string[]): void {
  for (const name of disks) {
    const disk = diskIn(xml, name);
    const kind = ["transient", "readonly"].find((each) => disk?.first(each));
    if (kind === undefined) continue;
    const message = `disk ${name} is <${kind}/> in the point's definition, so it can't be filled while the guest runs: nothing was made. Restore without --live`;
    throw new PreconditionError("E_LIVE_UNSUPPORTED", message, { details: { disk: name } });
  }
}

/** The file that a disk is stored in. */
export function fileOf(xml: string, disk: string): string | undefined {
  return diskIn(xml, disk)?.first("source")?.attributeText("file");
}

/** @param files by the names of disks: the file that each is to be stored in */
export function withFiles(xml: string, files: ReadonlyMap<string, string>): string {
  const domain = parseTree(xml, "domain");
  for (const disk of domain.all("devices", "disk")) {
    const file = files.get(disk.first("target")?.attributeText("dev") ?? "");
    if (file !== undefined) disk.first("source")?.setAttribute("file", file);
  }
  return formatTree(domain);
}

function diskIn(xml: string, name: string): XmlElement | undefined {
  const isIt = (disk: XmlElement): boolean => disk.first("target")?.attributeText("dev") === name;
  return parseTree(xml, "domain").all("devices", "disk").find(isIt);
}

/** Kinds of displays that others connect to by TCP. */
const SERVED = ["vnc", "spice", "rdp"];

/**
 * A point's definition is stored without passwords. @returns a warning for each display that then lets in
 * everybody
 */
export function openDisplays(xml: string): string[] {
  return parseTree(xml, "domain")
    .all("devices", "graphics")
    .flatMap((graphics) => {
      const type = graphics.attributeText("type") ?? "";
      const places = graphics.all("listen").map((listen) => listen.attributeText("type"));
      const isPrivate = places.length > 0 && places.every((place) => place === "none" || place === "socket");
      const isSocket = graphics.attributeText("socket") !== undefined;
      const hasPassword = graphics.attributeText("passwd") !== undefined;
      if (!SERVED.includes(type) || isPrivate || isSocket || hasPassword) return [];
      const address = graphics.first("listen")?.attributeText("address") ?? graphics.attributeText("listen");
      const where = address ?? "the address that libvirt's configuration names";
      return [
        `its display (${type}) asks for no password, unless libvirt's configuration has one, and listens on ${where}: points hold no passwords. To set one before the guest runs, use --no-start`,
      ];
    });
}
