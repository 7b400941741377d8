/** The way to a daemon by TLS, with certificates both ways, as libvirt's own programs find them. */

import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { type ConnectionOptions, connect, type TLSSocket } from "node:tls";
import { hasCode, messageOf, PreconditionError } from "../../base/errors.js";
import { isMissing } from "../../host/durable-files.js";
import type { Transport } from "./connection.js";
import type { DaemonWay } from "./daemon-address.js";
import { LostError } from "./errors.js";
import { firstByte, opened, overSocket } from "./socket-transport.js";

/** libvirt's places for certificates: those of the system, and those of a user. */
const SYSTEM_PKI = {
  ca: "/etc/pki/CA/cacert.pem",
  crl: "/etc/pki/CA/cacrl.pem",
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
  let socket: TLSSocket | undefined;
  try {
    // Throws for files that are no certificates, no key or no list.
    socket = connect({
      ...certificates,
      host,
      port,
      servername: /^[\d.]+$|:/.test(host) ? "" : host,
      rejectUnauthorized: verify,
      minVersion: "TLSv1.2",
    });
    await opened(socket, signal, "secureConnect");
    // By one byte the daemon says that it accepts the client's certificate.
    const [accepted] = await firstByte(socket, signal);
    if (accepted !== 1) throw new Error("the daemon does not accept this client's certificate");
    return overSocket(socket);
  } catch (cause) {
    socket?.destroy();
    signal.throwIfAborted();
    if (NOBODY_THERE.some((code) => hasCode(cause, code))) throw new LostError(messageOf(cause));
    const message = `no libvirt of ${host}:${port} can be reached by TLS (${messageOf(cause)}): its certificate has to be for this name and of the CA in cacert.pem, and clientcert.pem of a CA that it knows, and cacrl.pem, where there is one, needs a list of each authority of its certificate, up to date and without that certificate (${SYSTEM_PKI.ca}, ${SYSTEM_PKI.cert}, ${SYSTEM_PKI.key}, ${SYSTEM_PKI.crl}, or a folder by ?pkipath=)`;
    throw new PreconditionError("E_LIBVIRT_TLS", message, { cause, details: { host, port } });
  }
}

type Certificates = Pick<ConnectionOptions, "ca" | "cert" | "key" | "crl">;

/** One list of a file that may have several: Node reads the first of each text. */
const REVOKED = /-----BEGIN X509 CRL-----.*?-----END X509 CRL-----/gs;

/**
 * Reads what there is, as libvirt does: a client may have no certificate, and an authority no list of what it
 * has revoked. A list that is there has to be understood and up to date, or nobody is let in by it. Where
 * there is one, Node wants one of each authority of the chain, from that in cacert.pem on. libvirt's own
 * programs let a certificate in whose authority has none: whether that one was revoked is then not known.
 *
 * @throws {PreconditionError} `E_LIBVIRT_TLS`: a file is missing, or can't be read
 */
async function readCertificates({ pki, verify }: DaemonWay & { kind: "tls" }): Promise<Certificates> {
  const inFolder = (folder: string): typeof SYSTEM_PKI => ({
    ca: join(folder, "cacert.pem"),
    crl: join(folder, "cacrl.pem"),
    cert: join(folder, "clientcert.pem"),
    key: join(folder, "clientkey.pem"),
  });
  // As libvirt does: the user's own, or else the system's. Root's HOME may be another user's.
  const own = process.geteuid?.() === 0 ? [] : [inFolder(join(homedir(), ".pki", "libvirt"))];
  const places = pki === undefined ? [...own, SYSTEM_PKI] : [inFolder(pki)];
  /** Of the first place that has all of them. */
  const find = async (...names: readonly (keyof typeof SYSTEM_PKI)[]): Promise<readonly Buffer[]> => {
    for (const place of places) {
      const files = await Promise.all(names.map((name) => readIfThere(place[name])));
      const found = files.filter((file) => file !== undefined);
      if (found.length === names.length) return found;
    }
    return [];
  };
  const [ca] = await find("ca");
  const [lists] = await find("crl");
  // Of a key, no certificate but its own is of use.
  const [cert, key] = await find("cert", "key");
  if (ca === undefined && verify) {
    const paths = places.map((place) => place.ca);
    const message = `the connection to libvirt by TLS takes the certificate of its CA: put it to ${paths.join(" or ")}`;
    throw new PreconditionError("E_LIBVIRT_TLS", message, { details: { paths } });
  }
  const text = lists?.toString("latin1");
  const crl = text === undefined ? undefined : (text.match(REVOKED) ?? [text]);
  return { ...(ca ? { ca } : {}), ...(cert && key ? { cert, key } : {}), ...(crl ? { crl: [...crl] } : {}) };
}

async function readIfThere(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (cause) {
    if (isMissing(cause)) return undefined;
    const message = `${path}, which the connection to libvirt by TLS takes, can't be read: ${messageOf(cause)}`;
    throw new PreconditionError("E_LIBVIRT_TLS", message, { cause, details: { path } });
  }
}
