/** A machine type that a host has. */
export interface Machine {
  readonly name: string;
  /** The versioned one that an alias stands for: `pc-q35-7.2` of `q35`. */
  readonly canonical: string | undefined;
  readonly isDeprecated: boolean;
}

/** A version at the end of a name: of QEMU's own machine types, or of Red Hat's. */
const VERSION = /-(rhel)?(\d+(?:\.\d+)*)$/;

/**
 * Finds the machine type that is most like one that the host has not: of the same family (`pc-q35`, `virt`),
 * the first that is newer, or else the newest. Distributions give their machine types versions of their own,
 * which are not compared with those of others.
 * @returns undefined if the host has none of that family
 */
export function nearestMachine(wanted: string, machines: readonly Machine[]): string | undefined {
  const named = machines.flatMap(({ name, canonical, isDeprecated }) => {
    const own = { name, isDeprecated, ...partsOf(name) };
    return canonical === undefined ? [own] : [own, { ...own, ...partsOf(canonical), name: canonical }];
  });
  const families = [...new Set(named.map(({ family }) => family))].filter((family) => family !== "");
  const mine = families
    .filter((family) => wanted === family || wanted.startsWith(`${family}-`))
    .toSorted((one, other) => other.length - one.length)[0];
  const ofFamily = named
    .filter(({ family, version }) => family === mine && version !== undefined)
    .toSorted((one, other) => compare(one.version ?? [], other.version ?? []));
  const fresh = ofFamily.filter(({ isDeprecated }) => !isDeprecated);
  const candidates = fresh.length > 0 ? fresh : ofFamily;
  const { version, scheme } = partsOf(wanted);
  const newer = candidates.find(
    (each) => version !== undefined && each.scheme === scheme && compare(each.version ?? [], version) >= 0,
  );
  return (newer ?? candidates.at(-1))?.name;
}

function partsOf(name: string): {
  readonly family: string;
  readonly scheme: string;
  readonly version: readonly number[] | undefined;
} {
  const found = VERSION.exec(name);
  if (!found) return { family: "", scheme: "", version: undefined };
  const version = (found[2] ?? "").split(".").map(Number);
  return { family: name.slice(0, found.index), scheme: found[1] ?? "", version };
}

function compare(one: readonly number[], other: readonly number[]): number {
  for (let part = 0; part < Math.max(one.length, other.length); part += 1) {
    const difference = (one[part] ?? 0) - (other[part] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
