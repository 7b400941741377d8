/**
 * Checks the names and addresses of hosts. Node's own checks are in `node:net`, which pure modules don't
 * import.
 */

const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}$/;
const IPV6_CHARACTERS = /^[0-9a-f:.]+$/i;

/** With or without a zone, such as `fe80::1%eth0`. */
export function isIpv6Address(host: string): boolean {
  const [address = "", zone, ...more] = host.split("%");
  const isZone = more.length === 0 && zone !== "";
  return isZone && IPV6_CHARACTERS.test(address) && URL.canParse(`http://[${address}]/`);
}

/** Whether a host is an address rather than a name. */
export function isIpAddress(host: string): boolean {
  return IPV4.test(host) || isIpv6Address(host);
}

/** Control characters, blanks, and what separates the parts of a URI. */
const NEVER_IN_A_NAME = /[\p{Cc}\s/?#@:\\[\]]/u;

/**
 * Whether text can be a host: an address, or a name without characters that resolvers, certificates and
 * people may interpret differently, such as an embedded NUL.
 */
export function isHost(text: string): boolean {
  return isIpv6Address(text) || (text !== "" && !NEVER_IN_A_NAME.test(text));
}
