import { findStranger, refuseStranger, tighten } from "../src/backup/repository/strangers.js";
import { namesStore } from "../src/backup/storage/open-store.js";
import type { TrustOptions } from "./options.js";
import type { Output } from "./output.js";

/**
 * Warns if others can write to the repository.
 * @param domains whose points are read; undefined: all
 */
export async function warnOfStrangers(
  path: string,
  domains: readonly string[] | undefined,
  output: Output,
): Promise<void> {
  const stranger = await findStranger(path, domains);
  if (stranger !== undefined) output.warn(stranger);
}

/**
 * Call it before something is written to the repository, or defined from it. As root, refuses a repository
 * that others can write to; otherwise warns of it.
 * @throws {PreconditionError} `E_STRANGERS`
 */
export async function requireTrust(
  path: string,
  domains: readonly string[] | undefined,
  { trustRepository }: TrustOptions,
  output: Output,
): Promise<void> {
  if (trustRepository) return;
  const stranger = await findStranger(path, domains);
  if (stranger === undefined) return;
  refuseStranger(stranger);
  output.warn(stranger);
}

/**
 * The same for a command that adds or removes points. Takes others' rights to an older repository away.
 */
export async function prepareToWrite(
  path: string,
  domains: readonly string[] | undefined,
  options: TrustOptions,
  output: Output,
): Promise<void> {
  // Who else can write to a store is nothing that this machine knows.
  if (namesStore(path)) return;
  await requireTrust(path, domains, options, output);
  const tightened = await tighten(path);
  if (tightened === 0) return;
  const domainsOf = tightened === 1 ? "one domain" : `${tightened} domains`;
  output.note(
    `${path}: the points of ${domainsOf} were open to other users, and are for their owner only now (share them with a group by chmod g+s on the repository's folder)`,
  );
}
