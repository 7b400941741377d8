import { formatTree, parseTree, XmlElement } from "../libvirt/documents/xml-tree.js";

const POLICIES = ["error_policy", "rerror_policy"] as const;

/** What a disk of a definition said of errors, by the names of libvirt's attributes. */
type DiskPolicies = Readonly<Record<string, string>>;

/**
 * While a disk is being filled, a guest must not be told of errors that pass: it stops until somebody lets it
 * go on.
 * @param reads `report`: the guest is told of reads that fail
 * @returns the definition, and what each disk said before
 */
export function stopOnErrors(
  xml: string,
  disks: readonly string[],
  reads: "stop" | "report",
): { readonly xml: string; readonly before: ReadonlyMap<string, DiskPolicies> } {
  const domain = parseTree(xml, "domain");
  const before = new Map<string, DiskPolicies>();
  for (const [name, driver] of driversOf(domain, disks)) {
    const said = POLICIES.map((policy) => [policy, driver.attributeText(policy)] as const);
    before.set(
      name,
      Object.fromEntries(
        said.filter((entry): entry is [(typeof entry)[0], string] => entry[1] !== undefined),
      ),
    );
    driver.setAttribute("error_policy", "stop");
    driver.setAttribute("rerror_policy", reads);
  }
  return { xml: formatTree(domain), before };
}

/**
 * Takes back what {@link stopOnErrors} has changed, and what libvirt noted of the images that disks were
 * based on. Whatever else was changed meanwhile stays.
 */
export function withPolicies(xml: string, before: ReadonlyMap<string, DiskPolicies>): string {
  const domain = parseTree(xml, "domain");
  for (const disk of disksOf(domain, [...before.keys()])) disk.remove("backingStore");
  for (const [name, driver] of driversOf(domain, [...before.keys()])) {
    driver.removeAttribute(...POLICIES);
    for (const [policy, value] of Object.entries(before.get(name) ?? {})) driver.setAttribute(policy, value);
  }
  return formatTree(domain);
}

function driversOf(domain: XmlElement, disks: readonly string[]): [string, XmlElement][] {
  return disksOf(domain, disks).map((disk) => {
    const driver = disk.first("driver") ?? XmlElement.create("driver", { name: "qemu" });
    disk.replace(driver);
    return [nameOf(disk), driver];
  });
}

function disksOf(domain: XmlElement, names: readonly string[]): XmlElement[] {
  return domain.all("devices", "disk").filter((disk) => names.includes(nameOf(disk)));
}

function nameOf(disk: XmlElement): string {
  return disk.first("target")?.attributeText("dev") ?? "";
}
