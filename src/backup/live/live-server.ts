import { lchown } from "node:fs/promises";
import { DamageError, messageOf, PreconditionError } from "../base/errors.js";
import { parseHostSecurity } from "../libvirt/documents/capabilities-xml.js";
import type { QemuUser } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Repository } from "../repository/repository.js";
import type { DiskCacheOptions } from "../serve/disk-cache.js";
import { type PointServer, type ServeOptions, servePoint } from "../serve/serve.js";
import type { BootReads } from "./boot-reads.js";
import type { LiveState } from "./live-state.js";

/** Beside the disks. Its path is written in the images, so a later run listens there again. */
export const LIVE_SOCKET = ".nbdpull-live.sock";

interface LiveServerOptions extends Omit<ServeOptions, "address"> {
  /** Where the socket is made. */
  readonly place: string;
  /** Whom QEMU runs as; undefined: as this user. */
  readonly qemuUser: QemuUser | undefined;
  /** Called once for each place that can't be read. */
  readonly onDamage: (error: DamageError) => void;
  readonly onTrouble: (message: string) => void;
}

/**
 * Serves a point to the QEMUs of one user, and to nobody else.
 * @throws {PreconditionError} `E_ADDRESS_IN_USE`: another nbdpull serves there; `E_LIVE_USER`: QEMU runs as
 *   another user, whom only root can let in; and as {@link servePoint}
 */
export async function serveToQemu(options: LiveServerOptions): Promise<PointServer> {
  const { place, qemuUser, onDamage, onTrouble } = options;
  const path = `${place}/${LIVE_SOCKET}`;
  const told = new Set<string>();
  const server = await servePoint({
    ...options,
    address: { path },
    onEvent: ({ error }) => {
      const message = error instanceof Error ? error.message : String(error);
      if (told.has(message)) return;
      told.add(message);
      if (error instanceof DamageError) onDamage(error);
      else onTrouble(message);
    },
  });
  try {
    if (qemuUser && qemuUser.uid !== process.getuid?.()) await lchown(path, qemuUser.uid, qemuUser.gid);
    return server;
  } catch (cause) {
    await server.close();
    const message = `QEMU runs as user ${qemuUser?.uid} and has to connect to ${path}, and only root can let it: run this as root, or name your own libvirt with --connect qemu:///session`;
    throw new PreconditionError("E_LIVE_USER", message, { cause, details: { path, uid: qemuUser?.uid } });
  }
}

interface LiveServing {
  readonly repository: Repository;
  /** The name of its folder in the repository. */
  readonly domain: string;
  readonly libvirt: Libvirt;
  readonly cache?: DiskCacheOptions | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onEvent: (
    event:
      | { readonly type: "damaged"; readonly error: DamageError }
      | { readonly type: "trouble" | "warning"; readonly message: string },
  ) => void;
}

/**
 * Serves the point of a live restore to its guest.
 * @param state and what notes what is read
 * @throws as {@link serveToQemu}
 */
export async function serveLive(
  { repository, domain, libvirt, cache, signal, onEvent }: LiveServing,
  { place, point, disks, boot }: Pick<LiveState, "place" | "point" | "disks"> & { readonly boot?: BootReads },
): Promise<PointServer> {
  const { qemuUser } = parseHostSecurity(await libvirt.capabilities());
  const server = await serveToQemu({
    ...{
      repository,
      domain,
      at: point,
      disks: disks.map(({ name }) => name),
      cache,
      signal,
      place,
      qemuUser,
    },
    onRead: (...read) => boot?.note(...read),
    onCacheFailure: (error) =>
      onEvent({ type: "warning", message: `nothing more is cached: ${messageOf(error)}` }),
    onDamage: (error) => onEvent({ type: "damaged", error }),
    onTrouble: (message) => onEvent({ type: "trouble", message }),
  });
  for (const { disk, checked } of server.disks) {
    if (checked) continue;
    onEvent({ type: "warning", message: `${disk}: a layer has no digests, so its data is served unproven` });
  }
  return server;
}
