import { PreconditionError } from "../base/errors.js";
import { exists } from "../host/durable-files.js";
import { formatTree, parseTree } from "../libvirt/documents/xml-tree.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { findLacks } from "./host-lacks.js";
import type { Lack } from "./lack.js";

/** What a definition has in the place of what the host has not. */
export interface Adaptation {
  /** `machine type pc-q35-9.2`. */
  readonly wanted: string;
  /** `machine type pc-q35-7.2`. */
  readonly now: string;
}

interface FitOptions {
  readonly libvirt: Libvirt;
  /** In messages: the domain. */
  readonly name: string;
  /** Files that are made for it. */
  readonly own: ReadonlySet<string>;
  /** It is started at once, so its networks have to be on. */
  readonly starts: boolean;
  /** Nothing stands in for a network that is not there. */
  readonly keepsNetworks: boolean;
  /** Change what the host has not; otherwise it is only named. */
  readonly adapt: boolean;
  /** In messages: how to have the definition to mend it by hand. */
  readonly byHand: string;
}

/**
 * Makes sure that a host has what a definition wants.
 * @returns the definition, and what was changed in it
 * @throws {PreconditionError} `E_HOST_LACKS`: the host has not all of it, and that is not to be changed, or
 *   can't be
 */
export async function fitToHost(
  xml: string,
  { libvirt, name, own, starts, keepsNetworks, adapt, byHand }: FitOptions,
): Promise<{ readonly xml: string; readonly adapted: readonly Adaptation[] }> {
  const domain = parseTree(xml, "domain");
  const isLocal = (await libvirt.remoteHost()) === undefined;
  const where = { own, starts, keepsNetworks, isThere: isLocal ? isThere : undefined };
  const lacks = await findLacks(domain, { libvirt, ...where });
  if (lacks.length === 0) return { xml, adapted: [] };
  const hopeless = lacks.filter(({ mend }) => !mend);
  if (!adapt || hopeless.length > 0) throw lackError(lacks, hopeless, { name, byHand });
  const adapted = lacks.map(({ wanted, mend }) => ({ wanted, now: mend?.() ?? "" }));
  return { xml: formatTree(domain), adapted };
}

/** What can't be looked at is taken to be there. */
async function isThere(path: string): Promise<boolean> {
  return await exists(path).catch(() => true);
}

function lackError(
  lacks: readonly Lack[],
  hopeless: readonly Lack[],
  { name, byHand }: Pick<FitOptions, "name" | "byHand">,
): PreconditionError {
  const text = ({ wanted, why }: Lack): string => (why === undefined ? wanted : `${wanted} (${why})`);
  const named = lacks.map(text).join("; ");
  const can = lacks.length - hopeless.length;
  const others = hopeless.map(({ wanted }) => wanted).join("; ");
  const next =
    hopeless.length === 0
      ? "Give the host what it lacks, or let --adapt change the definition, which tells each change"
      : `${can === 0 ? "--adapt has nothing to put in their place" : `--adapt changes the others, but has nothing to put in the place of: ${others}`}. Give them to the host; ${byHand}`;
  return new PreconditionError(
    "E_HOST_LACKS",
    `this host lacks what the definition of ${name} wants: ${named}. Nothing was restored. ${next}`,
    {
      details: {
        domain: name,
        lacks: lacks.map(({ wanted, mend }) => ({ wanted, canAdapt: mend !== undefined })),
      },
    },
  );
}
