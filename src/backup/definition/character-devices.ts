/**
 * The serial lines, consoles, channels and the like of a restored domain: what connects them to the host must
 * be the new domain's own, since the old domain may run beside it.
 */

import type { XmlElement } from "../libvirt/documents/xml-tree.js";
import { OWN_TERMINALS } from "./definition-rules.js";

const KINDS = ["serial", "parallel", "console", "channel", "redirdev", "smartcard"];
/** Types that use nothing on the host over which two domains could conflict. */
const UNSHARED = new Set(["pty", "null", "vc", "stdio", "spicevmc", "spiceport", "qemu-vdagent"]);
/**
 * Where libvirt keeps what it makes at every start, under a path with the domain's name or its run's number.
 */
const LIBVIRTS_FOLDERS = /^\/(var\/lib|run|var\/run)\/libvirt\//;
/** Bytes of the longest socket path that the kernel accepts. */
const MOST_SOCKET_BYTES = 107;

export function isLibvirts(path: string | undefined): boolean {
  return LIBVIRTS_FOLDERS.test(path ?? "");
}

function lines(devices: XmlElement): XmlElement[] {
  return devices.elements.filter(({ name }) => KINDS.includes(name));
}

function typeOf(device: XmlElement): string {
  return device.attributeText("type") ?? "pty";
}

/** libvirt makes the socket of such a channel by itself, and of nothing else. */
function mayLackSource(device: XmlElement): boolean {
  const isSocket = device.name === "channel" && typeOf(device) === "unix";
  return isSocket && device.first("target")?.attributeText("type") === "virtio";
}

/** Removes terminals of the old domain's run, and sockets that libvirt makes anew. */
export function forgetLines(devices: XmlElement): void {
  for (const device of lines(devices)) {
    device.removeAttribute("tty");
    for (const target of device.all("target")) target.removeAttribute("state");
    const isMade = device.all("source").some((source) => isLibvirts(source.attribute("path")));
    if (typeOf(device) === "pty" || (isMade && mayLackSource(device))) device.remove("source");
  }
}

/**
 * Gives the new domain files and sockets of its own where the old one has some in libvirt's folders, and log
 * files wherever they are. A console that mirrors a serial line has the paths of that line. The rest stays as
 * it is, with a warning.
 *
 * @param beginning of the new paths
 * @returns the new paths
 */
export function moveLines(devices: XmlElement, beginning: string, warnings: string[]): string[] {
  const moved = new Map<string, string>();
  for (const name of KINDS) {
    for (const [index, device] of devices.all(name).entries()) {
      const type = typeOf(device);
      const log = device.first("log");
      const logged = log?.attribute("file");
      if (log && logged !== undefined) {
        const file = moved.get(logged) ?? `${beginning}.${name}${index}.record.log`;
        if (!moved.has(logged))
          warnings.push(`what passes its <${name}> is logged to ${file} now, not to ${logged}`);
        moved.set(logged, file);
        log.setAttribute("file", file);
      }
      const source = device.first("source");
      if (!source || UNSHARED.has(type)) continue;
      const what = `its <${name} type='${type}'>`;
      const old = source.attribute("path");
      const isSocket = type === "unix" && source.attribute("mode") !== "connect";
      if (old === undefined || !isLibvirts(old) || !(isSocket || type === "file")) {
        warnings.push(`${what} was kept as it is: the old domain uses it too`);
        continue;
      }
      const path = moved.get(old) ?? `${beginning}.${name}${index}.${isSocket ? "sock" : "log"}`;
      if (isSocket && Buffer.byteLength(path) > MOST_SOCKET_BYTES) {
        makeTerminal(device);
        warnings.push(`${what} is a terminal of its own now: ${path} is too long for a socket`);
        continue;
      }
      if (!moved.has(old)) warnings.push(`${what} is ${path} now, and no longer ${old}`);
      moved.set(old, path);
      source.setAttribute("path", path);
    }
  }
  return [...moved.values()];
}

/**
 * Makes lines that end on the host terminals of the guest's own, and gives sockets a place that libvirt
 * makes.
 */
export function makeLinesOwn(devices: XmlElement, warnings: string[]): void {
  for (const device of devices.elements) {
    const type = typeOf(device);
    if (["serial", "console", "parallel"].includes(device.name) && !OWN_TERMINALS.split(" ").includes(type)) {
      warnings.push(`its <${device.name} type='${type}'> is a terminal of its own now`);
      makeTerminal(device);
    }
    if (mayLackSource(device) && device.first("source")) {
      warnings.push("its <channel type='unix'> has a socket of its own now, where libvirt makes one");
      device.remove("source");
    }
  }
}

function makeTerminal(device: XmlElement): void {
  device.setAttribute("type", "pty");
  device.remove("source", "protocol", "log");
}
