/**
 * An address that is refused, to be shown: without what stands before an `@`, which may have a password or a
 * secret key in it. `s3://KEY:SECRET@bucket` becomes `s3://***@bucket`, and `user:SECRET@host:/x`
 * `user:***@host:/x`. Only the user of `user@host:/x` stays, and a path that has an `@` and no colon.
 */
export function withoutSecrets(address: string): string {
  const [, scheme = "", rest = ""] = /^([A-Za-z][A-Za-z0-9+.-]*:(?:\/\/)?)?(.*)$/s.exec(address) ?? [];
  const isSecret = scheme !== "" || /:.*@/s.test(rest);
  return isSecret ? `${scheme}${rest.replace(/^.*@/s, "***@")}` : address;
}
