/** Finds the files that a domain needs to start besides its disks, and puts other files in their place. */
import { parseDomain, type QemuUser } from "./domain-xml.js";
import { parseTree, type XmlElement } from "./xml-tree.js";

/** A file of the host that QEMU starts the domain with. */
export interface BootFile {
  /**
   * `nvram`, `loader` (a firmware image that the guest can write), `kernel`, `initrd`, `dtb`, `shim`, `acpi`.
   */
  readonly role: string;
  /** The path as the definition states it. */
  readonly path: string;
}

/** Something that a restore point doesn't contain. */
export interface NotKept {
  /** `TPM state`, `kernel /boot/vmlinuz`, … */
  readonly what: string;
  readonly reason: string;
}

interface BootNeeds {
  readonly isRunning: boolean;
  /** The user that its QEMU runs as; absent while the domain is off, or if libvirt doesn't change users. */
  readonly qemuUser: QemuUser | undefined;
  readonly files: readonly BootFile[];
  /** State that no file holds that could be copied. */
  readonly notKept: readonly NotKept[];
}

/**
 * Reads the definition of a domain, running or not. The firmware itself belongs to the host, as QEMU does,
 * and is not listed.
 * @throws {BackupError} `E_DOMAIN_XML`, or that followed by an element's name
 */
export function readBootNeeds(xml: string): BootNeeds {
  const { id, qemuUser } = parseDomain(xml);
  const domain = parseTree(xml, "domain");
  const places = [...placesIn(domain)];
  return {
    isRunning: id !== undefined,
    qemuUser,
    files: places.flatMap(({ role, path }) => (path === undefined ? [] : [{ role, path }])),
    notKept: [
      ...places.flatMap(({ role, obstacle }) =>
        obstacle === undefined ? [] : [{ what: wordFor(role), reason: obstacle }],
      ),
      ...unfiled(domain),
    ],
  };
}

/** The name in messages: `NVRAM /var/lib/libvirt/qemu/nvram/web_VARS.fd`. */
export function wordFor(role: string, path?: string): string {
  const word = role === "nvram" ? "NVRAM" : role === "acpi" ? "ACPI table" : role;
  return path === undefined ? word : `${word} ${path}`;
}

/**
 * Replaces the paths of the boot files that have a new path in `restored`.
 * @param restored new paths, by old path
 * @returns the files whose old path the definition still names, except an NVRAM: no two domains share one
 */
export function moveBootFiles(domain: XmlElement, restored: ReadonlyMap<string, string>): BootFile[] {
  const kept: BootFile[] = [];
  // Collected first, because `move` changes the tree that the generator walks.
  for (const { role, path, move } of [...placesIn(domain)]) {
    const place = path === undefined ? undefined : restored.get(path);
    if (place !== undefined) move(place);
    else if (role !== "nvram" && path !== undefined) kept.push({ role, path });
  }
  return kept;
}

interface FileReference {
  readonly role: string;
  readonly path?: string | undefined;
  /** Why there is no path to copy from. */
  readonly obstacle?: string | undefined;
  readonly move: (path: string) => void;
}

function* placesIn(domain: XmlElement): Generator<FileReference> {
  for (const os of domain.all("os")) {
    for (const element of os.elements) {
      if (["kernel", "initrd", "dtb", "shim"].includes(element.name)) yield textPlace(element.name, element);
      if (element.name === "loader" && element.attribute("readonly") === "no") {
        yield textPlace("loader", element);
      }
      if (element.name === "acpi") {
        for (const table of element.all("table")) yield textPlace("acpi", table);
      }
      if (element.name === "nvram") yield nvramPlace(element);
    }
  }
}

function textPlace(role: string, element: XmlElement): FileReference {
  return { role, path: element.text || undefined, move: (path) => element.setText(path) };
}

/** The path is the element's text or, since libvirt 8.5, in a `<source>` as in a disk. */
function nvramPlace(element: XmlElement): FileReference {
  const type = element.attribute("type") ?? "file";
  const move = (path: string): void => {
    element.clear();
    element.removeAttribute("type");
    element.setText(path);
  };
  if (type !== "file") return { role: "nvram", obstacle: `it is no file, but of type ${type}`, move };
  const source = element.first("source")?.attributeText("file");
  return { role: "nvram", path: source ?? (element.text || undefined), move };
}

function* unfiled(domain: XmlElement): Generator<NotKept> {
  for (const backend of domain.all("devices", "tpm", "backend")) {
    const type = backend.attribute("type") ?? "unknown";
    const reason =
      type === "emulator"
        ? "swtpm holds it, in files that belong together and may change at any moment"
        : `it is of type ${type}: no file of libvirt's`;
    yield { what: "TPM state", reason };
  }
  for (const module of domain.all("devices", "memory")) {
    const path = module.first("source", "path")?.text;
    if (path) yield { what: `memory module ${path}`, reason: "it is no disk, and the guest writes to it" };
  }
}
