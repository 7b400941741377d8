import type { Socket } from "node:net";
import { createSecureContext, createServer, type TLSSocket, type TlsOptions } from "node:tls";
import { ClientFault } from "./errors.js";

/** A certificate for the server; with `clientCa`, only clients with a certificate of that authority get in. PEM. */
export interface CertificateTls {
  readonly certificate: string | Buffer;
  readonly key: string | Buffer;
  readonly clientCa?: string | Buffer;
}

/** Secret keys that clients share with the server, by user name. */
export interface PresharedKeyTls {
  readonly presharedKeys: ReadonlyMap<string, Uint8Array>;
}

/** Given to a server, TLS is required of each client: there is no fallback to plaintext. */
export type ServerTls = CertificateTls | PresharedKeyTls;

/** @throws OpenSSL's error at a certificate or key that is no use */
export function checkTls(tls: ServerTls): void {
  createSecureContext(nodeOptions(tls));
}

/**
 * Does the server's half of a TLS handshake on a connected socket that nobody reads any more.
 * @throws {ClientFault}
 */
export function upgradeToTls(socket: Socket, tls: ServerTls): Promise<TLSSocket> {
  // Half-open is for the end of a conversation: who closes its side in the middle of this handshake is gone.
  const { allowHalfOpen } = socket;
  socket.allowHalfOpen = false;
  return new Promise((resolve, reject) => {
    // A server for this one connection: it never listens, but verifies clients just as a listening one does.
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
      // OpenSSL leaves key exchange by shared secret out of its defaults. The first suite is that of TLS 1.3, where
      // such keys go with SHA-256.
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
