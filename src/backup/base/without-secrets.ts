/**
 * An address that is refused, to be shown: without what stands before an `@`, where a colon in it may part a
 * name from a password or a secret key. `s3://KEY:SECRET@bucket` becomes `s3://***@bucket`.
 */
export function withoutSecrets(address: string): string {
  const [, scheme = "", rest = ""] = /^([A-Za-z][A-Za-z0-9+.-]*:(?:\/\/)?)?(.*)$/s.exec(address) ?? [];
  const isSecret = scheme.endsWith("/") || /:.*@/s.test(rest);
  return isSecret ? `${scheme}${rest.replace(/^.*@/s, "***@")}` : address;
}
