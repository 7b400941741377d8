/** Explains why a TLS handshake failed, and what to do about it. */

import { type NbdError, TlsError } from "./errors.js";

/** Credentials of this side and checks on the other. */
export interface TlsCase {
  readonly kind: "certificate" | "psk";
  /** The name that the server's certificate must have, or the user whose key the server must know. */
  readonly name: string;
  readonly hasClientCertificate: boolean;
}

/** OpenSSL's codes for a certificate that no trusted CA has signed. */
const UNTRUSTED: ReadonlySet<string> = new Set([
  "CERT_SIGNATURE_FAILURE",
  "CERT_UNTRUSTED",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "INVALID_CA",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
]);

/** The error for a failed handshake; without `error`, the server hung up. */
export function handshakeFailure(tls: TlsCase, error: Error | undefined): TlsError {
  const reason = error?.message ?? "the server closed the connection";
  return new TlsError("NBD_TLS_FAILED", `the TLS handshake failed: ${reason}${advice(tls, error)}`, {
    cause: error,
    hangUp: error === undefined || isHangUp(error),
  });
}

/**
 * The error for a server that hung up before its first byte over TLS. In TLS 1.3, a client completes the
 * handshake before the server checks its certificate.
 */
export function refusalAfterHandshake(tls: TlsCase, cause: NbdError): TlsError {
  const message = `${cause.message}, in the TLS handshake or right after it${objection(tls)}`;
  const hangUp = cause.code === "NBD_CLOSED_BY_SERVER" || isHangUp(cause.cause);
  return new TlsError("NBD_TLS_FAILED", message, { cause, hangUp });
}

/** System errors for a connection that ended without a TLS alert. */
const HANG_UPS: ReadonlySet<unknown> = new Set(["ECONNABORTED", "ECONNRESET", "EPIPE", "ETIMEDOUT"]);

function isHangUp(error: unknown): boolean {
  return error instanceof Error && "code" in error && HANG_UPS.has(error.code);
}

function advice(tls: TlsCase, error: Error | undefined): string {
  const code = error !== undefined && "code" in error && typeof error.code === "string" ? error.code : "";
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID") {
    return `; the server's certificate is not for ${tls.name}: name the host as the certificate does, or say by tls-hostname whose certificate to expect`;
  }
  if (UNTRUSTED.has(code)) {
    return tls.kind === "psk"
      ? "; the server shows a certificate instead of knowing the key: use certificates, or another server"
      : "; no CA that is trusted here signed the server's certificate: give the certificate of the CA that did";
  }
  if (code === "CERT_HAS_EXPIRED" || code === "CERT_NOT_YET_VALID") {
    return "; the server needs a new certificate, or one of the two clocks is wrong";
  }
  if (code === "ERR_SSL_UNSUPPORTED_PROTOCOL" || code.endsWith("ALERT_PROTOCOL_VERSION")) {
    return "; this client speaks TLS 1.2 and 1.3";
  }
  return objection(tls);
}

/** Reasons why the server may reject this client. */
function objection(tls: TlsCase): string {
  if (tls.kind === "psk") return `; does the server have the same key for the user ${tls.name}?`;
  return tls.hasClientCertificate
    ? "; it may refuse the client's certificate: is it signed by the CA that the server trusts?"
    : "; it may want a client certificate: give one and its key";
}
