/** Queries to a server without opening an export. */

import { dial } from "./dial.js";
import { type ExportInfo, exportInfo } from "./export-info.js";
import { FAREWELL, negotiateInfo, negotiateList } from "./negotiate.js";
import { type ConnectOptions, type ReachOptions, resolveReach } from "./settings.js";
import type { NbdAddress } from "./uri.js";
import type { ListedExport } from "./wire/options.js";

/** Lists the exports that a server is willing to name. The export name in the URI is ignored. */
export async function listExports(
  target: string | NbdAddress,
  options: ReachOptions = {},
): Promise<readonly ListedExport[]> {
  const reach = await resolveReach(target, options);
  const { transport, result } = await dial(reach, negotiateList({ tls: reach.secure !== undefined }));
  await transport.end(FAREWELL);
  return result;
}

/** What to learn of an export, and how to reach it. */
export type DescribeOptions = ReachOptions &
  Pick<ConnectOptions, "metaContexts" | "optionalContexts" | "listContexts">;

/**
 * Describes an export by the option INFO, without opening it. Some servers know less before opening:
 * nbd-server reports size 0.
 * @throws {NbdError} of any class but RequestError
 */
export async function describeExport(
  target: string | NbdAddress,
  options: DescribeOptions = {},
): Promise<ExportInfo> {
  const reach = await resolveReach(target, options);
  const wish = {
    exportName: reach.address.exportName,
    tls: reach.secure !== undefined,
    metaContexts: options.metaContexts ?? [],
    optionalContexts: options.optionalContexts ?? [],
    listContexts: options.listContexts ?? false,
  };
  const { transport, result } = await dial(reach, negotiateInfo(wish));
  await transport.end(FAREWELL);
  return exportInfo(result);
}
