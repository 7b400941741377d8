import type { Socket } from "node:net";
import { createSecureContext, createServer, type TLSSocket, type TlsOptions } from "node:tls";
import { ClientFault } from "./errors.js";

/**
 * A certificate for the server, in PEM. With `clientCa`, only clients with a certificate of that authority
 * are accepted.
 */
export interface CertificateTls {
  readonly certificate: string | Buffer;
  readonly key: string | Buffer;
  readonly clientCa?: string | Buffer;
}

/** Secret keys shared with clients, by user name. */
export interface PresharedKeyTls {
  readonly presharedKeys: ReadonlyMap<string, Uint8Array>;
}

/** If present, the server requires TLS of each client; there is no fallback to plain text. */
export type ServerTls = CertificateTls | PresharedKeyTls;

/** @throws OpenSSL's error for an invalid certificate or key */
export function checkTls(tls: ServerTls): void {
  createSecureContext(nodeOptions(tls));
}

/**
 * Runs the server side of a TLS handshake on a connected socket that has no other reader.
 * @throws {ClientFault}
 */
export function upgradeToTls(socket: Socket, tls: ServerTls): Promise<TLSSocket> {
  // Half-open connections are for the end of a session: a client that closes its side during this handshake
  // has gone.
  const { allowHalfOpen } = socket;
  socket.allowHalfOpen = false;
  return new Promise((resolve, reject) => {
    // A server for this one connection. It never listens, but verifies clients as a listening one does.
    createServer(nodeOptions(tls))
      .once("secureConnection", (secured) => {
        secured.allowHalfOpen = allowHalfOpen;
        resolve(secured);
      })
      .once("tlsClientError", (error) => {
        reject(new ClientFault("TLS_FAILED", `the TLS handshake failed: ${error.message}`, { cause: error }));
      })
      .emit("connection", socket);
  });
}

function nodeOptions(tls: ServerTls): TlsOptions {
  if ("presharedKeys" in tls) {
    return {
      minVersion: "TLSv1.2",
      // OpenSSL's defaults don't include key exchange by shared secret. The first suite is for TLS 1.3, where
      // such keys require SHA-256.
      ciphers: "TLS_AES_128_GCM_SHA256:PSK+HIGH:!aNULL",
      pskCallback: (_socket, identity) => tls.presharedKeys.get(identity) ?? null,
    };
  }
  return {
    minVersion: "TLSv1.2",
    cert: tls.certificate,
    key: tls.key,
    ...(tls.clientCa === undefined ? {} : { ca: tls.clientCa, requestCert: true, rejectUnauthorized: true }),
  };
}
