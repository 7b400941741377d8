/** Ways to a daemon: a Unix socket and TCP; ssh and TLS have files of their own. */

import { connect } from "node:net";
import { resolve } from "node:path";
import { hasCode, messageOf, PreconditionError } from "../../base/errors.js";
import { isMissing } from "../../host/durable-files.js";
import { ChangeablePath, unchangeablePath } from "../../host/unchangeable-path.js";
import type { Transport } from "./connection.js";
import type { DaemonAddress, DaemonWay } from "./daemon-address.js";
import { dialSsh } from "./dial-ssh.js";
import { LostError } from "./errors.js";
import { opened, overSocket } from "./socket-transport.js";

/**
 * Connects, without a word of the protocol yet.
 *
 * @throws {LostError} nobody answers there
 * @throws {PreconditionError} `E_LIBVIRT_ACCESS`, `E_LIBVIRT_OWNER`, `E_LIBVIRT_TLS`, `E_NO_SSH`
 * @throws the signal's reason
 */
export async function dial({ way, uri }: DaemonAddress, signal: AbortSignal): Promise<Transport> {
  switch (way.kind) {
    case "unix":
      return await dialUnix(way.sockets, signal);
    case "ssh":
      return await dialSsh(way, uri);
    case "tls": {
      // Loaded only where it is wanted.
      const { dialTls } = await import("./dial-tls.js");
      return await dialTls(way, signal);
    }
    case "tcp":
      return await dialTcp(way, signal);
  }
}

async function dialUnix(sockets: readonly string[], signal: AbortSignal): Promise<Transport> {
  const refusals: string[] = [];
  for (const path of sockets) {
    try {
      const real = await unchangeablePath(resolve(path), [0, process.geteuid?.() ?? 0]);
      return overSocket(await opened(connect({ path: real }), signal));
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ChangeablePath) throw strangersSocket(path, error);
      if (hasCode(error, "EACCES") || hasCode(error, "EPERM")) throw noAccess(path, error);
      refusals.push(isMissing(error) ? `connect ENOENT ${path}` : messageOf(error));
    }
  }
  throw new LostError(refusals.join("; "));
}

/** What a daemon says names the files that are read here, so nobody else may answer in its place. */
function strangersSocket(socket: string, cause: ChangeablePath): PreconditionError {
  const message = `${cause.who} can change ${cause.folder}, and so answer at ${socket} in the place of libvirt, and have any file read: run nbdpull as the user whose libvirt it is, or name another with --connect URI`;
  return new PreconditionError("E_LIBVIRT_OWNER", message, { cause, details: { socket } });
}

function noAccess(path: string, cause: unknown): PreconditionError {
  const message = `this user may not use libvirt's socket ${path}: join the group libvirt (sudo usermod -aG libvirt "$USER", then log in again), run nbdpull by sudo, or name your own libvirt with --connect qemu:///session`;
  return new PreconditionError("E_LIBVIRT_ACCESS", message, { cause, details: { socket: path } });
}

async function dialTcp({ host, port }: DaemonWay & { kind: "tcp" }, signal: AbortSignal): Promise<Transport> {
  try {
    return overSocket(await opened(connect({ host, port }), signal));
  } catch (error) {
    signal.throwIfAborted();
    throw new LostError(messageOf(error));
  }
}
