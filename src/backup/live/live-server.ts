import { lchown } from "node:fs/promises";
import { DamageError, PreconditionError } from "../base/errors.js";
import type { QemuUser } from "../libvirt/domain-xml.js";
import { type PointServer, type ServeOptions, servePoint } from "../serve/serve.js";

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
