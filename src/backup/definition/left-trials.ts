import { isAlive, type ProcessIdentity, processIdentity, thisProcess } from "../host/process-identity.js";
import { formatTree, parseTree, XmlElement } from "../libvirt/documents/xml-tree.js";
import type { Libvirt } from "../libvirt/libvirt.js";

/** The names of trials. */
const NAME = /^nbdpull-trial-[0-9a-f]{8}$/;
const MARK = "nbdpull:trial";
const NAMESPACE = "urn:nbdpull:trial";

/**
 * Notes in the metadata of a definition which process tries it, so that another knows it if this one is
 * killed.
 */
export async function markedTrial(xml: string): Promise<string> {
  const { host, pid, startedAt } = await thisProcess();
  const domain = parseTree(xml, "domain");
  const metadata = domain.first("metadata") ?? XmlElement.create("metadata");
  metadata.replace(
    XmlElement.create(MARK, { "xmlns:nbdpull": NAMESPACE, host, pid: String(pid), startedAt }),
  );
  domain.replace(metadata);
  return formatTree(domain);
}

/**
 * Makes libvirt forget the domains that killed processes of this host left defined as trials: those that are
 * called so, bear the mark of a process that is dead, and don't run.
 */
export async function clearLeftTrials(libvirt: Libvirt): Promise<void> {
  for (const domain of await libvirt.stoppedDomains()) {
    if (!NAME.test(domain.name)) continue;
    const owner = ownerIn(await libvirt.domainXml(domain, { inactive: true }));
    if (!owner || (await isAlive(owner))) continue;
    if ((await libvirt.domainId(domain)) === undefined) await libvirt.undefine(domain);
  }
}

function ownerIn(xml: string): ProcessIdentity | undefined {
  const mark = parseTree(xml, "domain").first("metadata", MARK);
  const [host, pid, startedAt] = ["host", "pid", "startedAt"].map((name) => mark?.attributeText(name));
  return processIdentity.safeParse({ host, pid: Number(pid), startedAt }).data;
}
