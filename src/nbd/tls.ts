/**
 * TLS on top of a connection: the only module that uses node:tls. Verification is on by default; the option
 * that turns it off has "insecure" in its name.
 */

import { X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import {
  type ConnectionOptions,
  connect,
  createSecureContext,
  DEFAULT_CIPHERS,
  type PeerCertificate,
  type TLSSocket,
} from "node:tls";
import { type NbdError, TlsError } from "./errors.js";
import { isIpAddress } from "./host.js";
import { handshakeFailure, refusalAfterHandshake, type TlsCase } from "./tls-failure.js";
import type { NbdAddress, TlsAddress } from "./uri.js";

/** How to set up TLS. These options take precedence over the URI. Their presence makes TLS mandatory. */
export interface TlsOptions {
  /** Folder with ca-cert.pem and, for a client certificate, client-cert.pem and client-key.pem. */
  readonly certificates?: string;
  /** CA certificates in PEM, instead of a folder. Only these are trusted then, not those of the system. */
  readonly ca?: string | Uint8Array;
  readonly cert?: string | Uint8Array;
  readonly key?: string | Uint8Array;
  /** File of `username:hexkey` lines, for a pre-shared key instead of certificates. */
  readonly pskFile?: string;
  /** User whose key is used; may be omitted if the file holds only one. */
  readonly username?: string;
  /** The name that the server's certificate must have; default: the host, or localhost over a Unix socket. */
  readonly hostname?: string;
  /**
   * Accepts any certificate: encrypts, but doesn't authenticate the server. The URI's `tls-verify-peer=0`
   * requires it as well.
   */
  readonly insecureSkipVerification?: boolean;
}

/** TLS, ready to be put on a connection. */
export interface Secure {
  /** Starts TLS on a plain stream. @throws {TlsError} */
  readonly handshake: (plain: Duplex) => Promise<Duplex>;
  /** The error for a server that hangs up before its first byte over TLS. */
  readonly explain: (cause: NbdError) => TlsError;
}

/** Options for Node, and a summary of them for messages. */
interface Identity {
  readonly options: ConnectionOptions;
  readonly tls: TlsCase;
}

/**
 * Reads certificates and keys for `address`; undefined if TLS isn't wanted.
 * @throws {TlsError} NBD_TLS_CONFIG
 */
export async function prepareTls(address: NbdAddress, options?: TlsOptions): Promise<Secure | undefined> {
  if (address.tls === undefined && options === undefined) return undefined;
  const wanted = merge(address.tls ?? {}, options ?? {});
  const insecure = wanted.insecureSkipVerification === true;
  if (address.tls?.verifyPeer === false && !insecure) {
    throw new TlsError(
      "NBD_TLS_CONFIG",
      "the URI says tls-verify-peer=0, which takes the option insecureSkipVerification as well",
    );
  }
  checkAgreement(wanted, address.tls?.type);
  const identity =
    wanted.pskFile === undefined
      ? await certificateIdentity(address, wanted, insecure)
      : await pskIdentity(wanted.pskFile, wanted.username);
  checkIdentity(identity.options);
  return {
    handshake: (plain) => handshake(plain, identity),
    explain: (cause) => refusalAfterHandshake(identity.tls, cause),
  };
}

/** The effective options, each taken from the options or else the URI. */
type Wanted = { readonly [Field in keyof TlsOptions]-?: TlsOptions[Field] | undefined };

/** Merges field by field: a field that is present but undefined must not hide a requirement of the URI. */
function merge(uri: TlsAddress, options: TlsOptions): Wanted {
  return {
    certificates: options.certificates ?? uri.certificates,
    ca: options.ca,
    cert: options.cert,
    key: options.key,
    pskFile: options.pskFile ?? uri.pskFile,
    username: options.username ?? uri.username,
    hostname: options.hostname ?? uri.hostname,
    insecureSkipVerification: options.insecureSkipVerification,
  };
}

function checkAgreement(wanted: Wanted, type: TlsAddress["type"]): void {
  for (const name of ["certificates", "ca", "cert", "key", "pskFile", "username", "hostname"] as const) {
    // Node would treat an empty value as missing, and check another name.
    if (wanted[name]?.length === 0) throw new TlsError("NBD_TLS_CONFIG", `the TLS option ${name} is empty`);
  }
  const { certificates, ca, cert, key, pskFile } = wanted;
  const hasCertificates = (certificates ?? ca ?? cert ?? key) !== undefined;
  if (pskFile !== undefined && hasCertificates) {
    throw new TlsError("NBD_TLS_CONFIG", "certificates and a pre-shared key exclude each other");
  }
  if (type === "psk" && pskFile === undefined) {
    throw new TlsError("NBD_TLS_CONFIG", "the URI says tls-type=psk, which takes a tls-psk-file as well");
  }
  if (type === "x509" && pskFile !== undefined) {
    throw new TlsError("NBD_TLS_CONFIG", "the URI says tls-type=x509, which excludes a pre-shared key");
  }
}

async function certificateIdentity(
  address: NbdAddress,
  wanted: Wanted,
  insecure: boolean,
): Promise<Identity> {
  const { certificates } = wanted;
  const fromFolder = async (name: string, optional: boolean) =>
    certificates === undefined ? undefined : await readPem(join(certificates, name), optional);
  const ca = wanted.ca ?? (await fromFolder("ca-cert.pem", false));
  const cert = wanted.cert ?? (await fromFolder("client-cert.pem", true));
  const key = wanted.key ?? (await fromFolder("client-key.pem", true));
  if ((cert === undefined) !== (key === undefined)) {
    throw new TlsError("NBD_TLS_CONFIG", "a client certificate and its key only make sense together");
  }
  const host = address.transport.kind === "tcp" ? address.transport.host : "localhost";
  const name = wanted.hostname ?? host;
  const options: ConnectionOptions = {
    host: name,
    // Server name indication is for names; its RFC forbids addresses.
    ...(isIpAddress(name) ? {} : { servername: name }),
    ...(ca === undefined ? {} : { ca: text(ca) }),
    ...(cert === undefined ? {} : { cert: text(cert) }),
    ...(key === undefined ? {} : { key: text(key) }),
    // The fastest of the modern suites first.
    ciphers: `TLS_AES_128_GCM_SHA256:${DEFAULT_CIPHERS}`,
    rejectUnauthorized: !insecure,
  };
  return { options, tls: { kind: "certificate", name, hasClientCertificate: cert !== undefined } };
}

function text(pem: string | Uint8Array): string {
  return typeof pem === "string" ? pem : Buffer.from(pem).toString("latin1");
}

async function readPem(path: string, optional: boolean): Promise<string | undefined> {
  try {
    return await readFile(path, "latin1");
  } catch (error) {
    if (optional && error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw unreadable(path, error);
  }
}

async function pskIdentity(pskFile: string, wanted: string | undefined): Promise<Identity> {
  const text = await readFile(pskFile, "utf8").catch((error) => Promise.reject(unreadable(pskFile, error)));
  const lines = text.split("\n").map((line) => line.trim());
  const { username, psk } = findKey(pskFile, lines, wanted);
  const options: ConnectionOptions = {
    pskCallback: () => ({ identity: username, psk }),
    // Without this restriction, PSK would include suites that don't encrypt.
    ciphers: "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:PSK+HIGH:!aNULL:!eNULL",
    // Set explicitly, because an environment variable of Node can turn it off.
    rejectUnauthorized: true,
    // No CA is trusted here: a server that presents a certificate doesn't know the key.
    ca: [],
    checkServerIdentity: (_name: string, certificate: PeerCertificate) =>
      Object.keys(certificate ?? {}).length > 0
        ? new Error("the server shows a certificate instead of knowing the key")
        : undefined,
  };
  return { options, tls: { kind: "psk", name: username, hasClientCertificate: false } };
}

/** The key of user `wanted`, or the only key if no user is named. */
function findKey(
  pskFile: string,
  lines: readonly string[],
  wanted: string | undefined,
): { username: string; psk: Buffer } {
  const entries = lines.filter((line) => line.includes(":") && !line.startsWith("#"));
  const [only = "", ...more] = entries;
  if (wanted === undefined && more.length > 0) {
    throw new TlsError(
      "NBD_TLS_CONFIG",
      `${pskFile} has keys of ${entries.length} users: name one, as in nbds://USER@HOST, or give a file with a single line`,
    );
  }
  const username = wanted ?? only.slice(0, only.indexOf(":"));
  const hex = entries.find((line) => line.startsWith(`${username}:`))?.slice(username.length + 1);
  if (hex === undefined || !/^([0-9a-f]{2})+$/i.test(hex)) {
    throw new TlsError("NBD_TLS_CONFIG", `${pskFile} has no line ${username || "USERNAME"}:HEXKEY`);
  }
  return { username, psk: Buffer.from(hex, "hex") };
}

function unreadable(path: string, error: unknown): TlsError {
  const reason = error instanceof Error ? error.message : String(error);
  return new TlsError("NBD_TLS_CONFIG", `${path} can't be read: ${reason}`, { cause: error });
}

function handshake(plain: Duplex, { options, tls }: Identity): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const stream = connect({ ...options, socket: plain, minVersion: "TLSv1.2" });
    stream.once("secureConnect", () => {
      if (tls.kind === "certificate" || isProvenByKey(stream)) resolve(stream);
      else stream.destroy(new Error("the server didn't prove that it knows the key"));
    });
    // Both listeners stay: an error that arrives together with the end of the handshake would otherwise be
    // unhandled.
    stream.on("error", (error) => reject(handshakeFailure(tls, error)));
    stream.on("close", () => reject(handshakeFailure(tls, undefined)));
  });
}

/** TLS 1.3 treats a pre-shared key as a resumed session; in earlier versions it is part of the suite. */
function isProvenByKey(stream: TLSSocket): boolean {
  // Null if the socket has already closed.
  if (Object.keys(stream.getPeerCertificate() ?? {}).length > 0) return false;
  if (stream.getProtocol() === "TLSv1.3") return stream.isSessionReused();
  return stream.getCipher().standardName.includes("_PSK_");
}

/** Has OpenSSL check certificates and keys before connecting. */
function checkIdentity(identity: ConnectionOptions): void {
  try {
    createSecureContext(identity);
    // Node would accept text without any certificate, and then trust no CA.
    if (typeof identity.ca === "string") new X509Certificate(identity.ca);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new TlsError("NBD_TLS_CONFIG", `certificates or keys can't be used: ${reason}`, { cause });
  }
}
