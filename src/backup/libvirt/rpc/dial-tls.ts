/** The way to a daemon by TLS, with certificates both ways, as libvirt's own programs find them. */

import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { connect } from "node:tls";
import { hasCode, messageOf, PreconditionError } from "../../base/errors.js";
import { isMissing } from "../../host/durable-files.js";
import type { Transport } from "./connection.js";
import type { DaemonWay } from "./daemon-address.js";
import { LostError } from "./errors.js";
import { firstByte, opened, overSocket } from "./socket-transport.js";

/** libvirt's places for certificates: those of the system, and those of a user. */
const SYSTEM_PKI = {
  ca: "/etc/pki/CA/cacert.pem",
  cert: "/etc/pki/libvirt/clientcert.pem",
  key: "/etc/pki/libvirt/private/clientkey.pem",
};

const NOBODY_THERE = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT"];

/**
 * @throws {LostError} nobody listens there
 * @throws {PreconditionError} `E_LIBVIRT_TLS`
 * @throws the signal's reason
 */
export async function dialTls(way: DaemonWay & { kind: "tls" }, signal: AbortSignal): Promise<Transport> {
  const { host, port, verify } = way;
  const certificates = await readCertificates(way);
  const socket = connect({
    ...certificates,
    host,
    port,
    servername: /^[\d.]+$|:/.test(host) ? "" : host,
    rejectUnauthorized: verify,
    minVersion: "TLSv1.2",
  });
  try {
    await opened(socket, signal, "secureConnect");
    // By one byte the daemon says that it accepts the client's certificate.
    const [accepted] = await firstByte(socket, signal);
    if (accepted !== 1) throw new Error("the daemon does not accept this client's certificate");
    return overSocket(socket);
  } catch (cause) {
    socket.destroy();
    signal.throwIfAborted();
    if (NOBODY_THERE.some((code) => hasCode(cause, code))) throw new LostError(messageOf(cause));
    const message = `no libvirt of ${host}:${port} can be reached by TLS (${messageOf(cause)}): its certificate has to be for this name and of the CA in cacert.pem, and clientcert.pem of a CA that it knows (${SYSTEM_PKI.ca}, ${SYSTEM_PKI.cert}, ${SYSTEM_PKI.key}, or a folder by ?pkipath=)`;
    throw new PreconditionError("E_LIBVIRT_TLS", message, { cause, details: { host, port } });
  }
}

/** @throws {PreconditionError} `E_LIBVIRT_TLS`: a file is missing */
async function readCertificates({
  pki,
  verify,
}: DaemonWay & { kind: "tls" }): Promise<{ ca?: Buffer; cert?: Buffer; key?: Buffer }> {
  const inFolder = (folder: string) => ({
    ca: join(folder, "cacert.pem"),
    cert: join(folder, "clientcert.pem"),
    key: join(folder, "clientkey.pem"),
  });
  const own = inFolder(join(homedir(), ".pki", "libvirt"));
  const read = async (name: keyof typeof own): Promise<Buffer | undefined> => {
    // As libvirt does: each file of the user's own, or else the system's. Root's HOME may be another user's.
    const usual = process.geteuid?.() === 0 ? [SYSTEM_PKI[name]] : [own[name], SYSTEM_PKI[name]];
    const paths = pki === undefined ? usual : [inFolder(pki)[name]];
    for (const path of paths) {
      try {
        return await readFile(path);
      } catch (cause) {
        if (isMissing(cause)) continue;
        const message = `${path}, which the connection to libvirt by TLS takes, can't be read: ${messageOf(cause)}`;
        throw new PreconditionError("E_LIBVIRT_TLS", message, { cause, details: { path } });
      }
    }
    if (name !== "ca" || !verify) return undefined;
    const message = `the connection to libvirt by TLS takes the certificate of its CA: put it to ${paths.join(" or ")}`;
    throw new PreconditionError("E_LIBVIRT_TLS", message, { details: { paths } });
  };
  const [ca, cert, key] = [await read("ca"), await read("cert"), await read("key")];
  return { ...(ca ? { ca } : {}), ...(cert ? { cert } : {}), ...(key ? { key } : {}) };
}
