/** Devices of a definition that a host's QEMU or libvirt has not, and what a guest can have instead. */

import { XmlElement } from "../libvirt/documents/xml-tree.js";
import type { DomainOffers } from "./host-offers.js";
import type { Lack } from "./lack.js";

interface DeviceRule {
  /** The element, and the one below it that says the kind; undefined: the element itself does. */
  readonly device: string;
  readonly below?: string;
  readonly attribute: string;
  /** Under `<devices>` of the domain capabilities. */
  readonly list: string;
  readonly values: string;
  /** @returns what the guest has instead */
  readonly mend: ((device: XmlElement, devices: XmlElement, offers: DomainOffers) => string) | undefined;
}

const RULES: readonly DeviceRule[] = [
  // A guest that finds its disks elsewhere may not start.
  { device: "disk", below: "target", attribute: "bus", list: "disk", values: "bus", mend: undefined },
  { device: "graphics", attribute: "type", list: "graphics", values: "type", mend: anotherDisplay },
  {
    device: "video",
    below: "model",
    attribute: "type",
    list: "video",
    values: "modelType",
    mend: anotherCard,
  },
  { device: "tpm", below: "backend", attribute: "type", list: "tpm", values: "backendModel", mend: leftOut },
  { device: "tpm", attribute: "model", list: "tpm", values: "model", mend: leftOut },
  { device: "rng", below: "backend", attribute: "model", list: "rng", values: "backendModel", mend: leftOut },
  { device: "channel", attribute: "type", list: "channel", values: "type", mend: leftOut },
  { device: "redirdev", attribute: "bus", list: "redirdev", values: "bus", mend: leftOut },
];

const SPICES = ["spicevmc", "spiceport"];
const DISPLAYS = ["vnc", "spice"];
const CARDS = ["virtio", "vga", "bochs", "cirrus"];

export function lackingDevices(domain: XmlElement, offers: DomainOffers): Lack[] {
  return domain.all("devices").flatMap((devices) => {
    const gone = new Set<XmlElement>();
    return RULES.flatMap((rule) => lacksBy(rule, devices, offers, gone));
  });
}

function lacksBy(
  { device: name, below, attribute, list, values, mend }: DeviceRule,
  devices: XmlElement,
  offers: DomainOffers,
  gone: Set<XmlElement>,
): Lack[] {
  const offered = offers.values(["devices", list], values);
  if (!offered) return [];
  return devices.all(name).flatMap((device): Lack[] => {
    const kind = (below === undefined ? device : device.first(below))?.attributeText(attribute);
    if (kind === undefined || offered.has(kind) || gone.has(device)) return [];
    gone.add(device);
    const wanted = `<${name}> ${attribute} ${kind}`;
    if (!mend) return [{ wanted }];
    return [{ wanted, mend: () => mend(device, devices, offers) }];
  });
}

function leftOut(device: XmlElement, devices: XmlElement): string {
  devices.removeWhere((each) => each === device);
  return "nothing in its place";
}

/** What rests on SPICE goes with it. */
function anotherDisplay(graphics: XmlElement, devices: XmlElement, offers: DomainOffers): string {
  const wasSpice = graphics.attributeText("type") === "spice";
  const offered = offers.values(["devices", "graphics"], "type");
  const other = DISPLAYS.find((display) => offered?.has(display));
  if (wasSpice) {
    devices.removeWhere(
      (each) =>
        SPICES.includes(each.attributeText("type") ?? "") &&
        ["channel", "redirdev", "smartcard"].includes(each.name),
    );
    for (const sound of devices.all("audio")) {
      if (sound.attributeText("type") === "spice") sound.setAttribute("type", "none");
    }
  }
  if (other === undefined || devices.all("graphics").length > 1) return leftOut(graphics, devices);
  const kept = graphics.all("listen");
  graphics.clear();
  for (const listen of kept) graphics.append(listen);
  graphics.removeAttribute("tlsPort", "defaultMode", "display", "xauth", "fullscreen");
  graphics.setAttribute("type", other);
  graphics.setAttribute("autoport", "yes");
  return `<graphics> type ${other}`;
}

function anotherCard(video: XmlElement, devices: XmlElement, offers: DomainOffers): string {
  const offered = offers.values(["devices", "video"], "modelType");
  const other = CARDS.find((card) => offered?.has(card));
  if (other === undefined) return leftOut(video, devices);
  video.replace(XmlElement.create("model", { type: other }));
  return `<video> type ${other}`;
}
