import {
  type ConnectOptions,
  MetaContextError,
  type NbdAddress,
  NbdClient,
  OptionError,
} from "../nbd/index.js";
import { PreconditionError } from "./errors.js";
import { ALLOCATION_CONTEXT, dirtyContext } from "./export-extents.js";

/**
 * Connects to an export for a backup: the bitmap, where one is named, is mandatory; allocation is taken where the
 * server has it.
 *
 * @throws {PreconditionError} no such export, no such bitmap
 * @throws {NbdError} anything else that goes wrong on the wire
 */
export async function openExport(
  target: string | NbdAddress,
  bitmap: string | undefined,
  options: Omit<ConnectOptions, "metaContexts" | "optionalContexts">,
): Promise<NbdClient> {
  try {
    return await NbdClient.connect(target, {
      ...options,
      metaContexts: bitmap === undefined ? [] : [dirtyContext(bitmap)],
      optionalContexts: [ALLOCATION_CONTEXT],
    });
  } catch (cause) {
    if (cause instanceof MetaContextError && bitmap !== undefined) {
      const message = `the export has no dirty bitmap "${bitmap}": nothing was copied. List what it has with "nbdpull info", or leave the bitmap out for a full copy (${cause.message})`;
      throw new PreconditionError("E_NO_BITMAP", message, { cause, details: { bitmap } });
    }
    if (cause instanceof OptionError && cause.code === "NBD_EXPORT_UNKNOWN") {
      const message = `${cause.message}. List what the server has with "nbdpull info --list"`;
      throw new PreconditionError("E_NO_EXPORT", message, { cause });
    }
    throw cause;
  }
}
