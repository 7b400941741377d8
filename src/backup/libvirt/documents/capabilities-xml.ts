import { z } from "zod";
import { type QemuUser, readDacLabel } from "./domain-xml.js";
import { type DocumentKind, element, parseDocument, text, yesNo } from "./xml.js";
import { parseTree } from "./xml-tree.js";

const HOST: DocumentKind = {
  code: "E_CAPABILITIES_XML",
  root: "capabilities",
  source: "virsh capabilities",
};

const secmodel = element(
  {},
  {
    model: text,
    baselabel: z.array(z.union([text, element({}, { "#text": text })])).default([]),
  },
);

const hostSchema = element({}, { host: element({}, { secmodel: z.array(secmodel).default([]) }) });

/** How libvirt confines the QEMU processes of a host. */
export interface HostSecurity {
  /** The user that QEMU runs as unless a domain names another; absent where libvirt doesn't change users. */
  readonly qemuUser?: QemuUser | undefined;
  /** Other security models that restrict QEMU to its own files: `apparmor`, `selinux`. */
  readonly confinedBy: readonly string[];
}

/**
 * Reads `<capabilities>` of a host.
 * @throws {BackupError} `E_CAPABILITIES_XML`, or that followed by an element's name
 */
export function parseHostSecurity(xml: string): HostSecurity {
  const { host } = parseDocument(HOST, xml, hostSchema);
  const [label] = host.secmodel.find(({ model }) => model === "dac")?.baselabel ?? [];
  return {
    qemuUser: readDacLabel(typeof label === "string" ? label : label?.["#text"]),
    confinedBy: host.secmodel
      .map(({ model }) => model)
      .filter((model) => model !== "dac" && model !== "none"),
  };
}

/**
 * Reads from `<capabilities>` of a host which programs its libvirt runs guests with.
 * @throws {BackupError} `E_CAPABILITIES_XML`, or that followed by an element's name
 */
export function parseEmulators(xml: string): ReadonlySet<string> {
  parseDocument(HOST, xml, hostSchema);
  const found = parseTree(xml, "capabilities")
    .all("guest", "arch")
    .flatMap((arch) => [...arch.all("emulator"), ...arch.all("domain", "emulator")]);
  return new Set(found.map(({ text }) => text));
}

const DOMAINS: DocumentKind = {
  code: "E_CAPABILITIES_XML",
  root: "domainCapabilities",
  source: "virsh domcapabilities",
};

const domainsSchema = element(
  {},
  {
    features: element({}, { backup: element({ supported: yesNo }, {}).optional() }).optional(),
  },
);

/**
 * Reads from `<domainCapabilities>` whether libvirt can make backups with checkpoints of such domains. The
 * result is undefined if libvirt doesn't say; it says so since version 7.
 * @throws {BackupError} `E_CAPABILITIES_XML`, or that followed by an element's name
 */
export function parseBackupSupport(xml: string): boolean | undefined {
  return parseDocument(DOMAINS, xml, domainsSchema).features?.backup?.$.supported;
}
