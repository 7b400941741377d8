import { UsageError } from "../base/errors.js";
import { withoutSecrets } from "../base/without-secrets.js";

/** Where a repository lies in an object store. */
export interface S3Address {
  readonly bucket: string;
  /** What all keys begin with: empty, or names that each end with a slash. */
  readonly prefix: string;
  /** The store's URL; undefined: as AWS's variables and files say, or AWS itself. */
  readonly endpoint?: string | undefined;
  readonly region?: string | undefined;
  /** The section of AWS's files that has the credentials. */
  readonly profile?: string | undefined;
  /**
   * Whether the bucket is part of the path rather than of the host's name. Undefined: as the endpoint needs
   * it.
   */
  readonly pathStyle?: boolean | undefined;
}

const SCHEME = "s3://";
/**
 * The endpoint that stands for AWS itself in its default partition, whatever AWS's variables and files say.
 */
export const AWS_ENDPOINT = "https://s3.amazonaws.com";
/** A key has at most 1,024 bytes, and what follows the prefix needs its share. */
const MOST_PREFIX_BYTES = 512;
const EXAMPLE =
  "s3://BUCKET/PREFIX, with options such as ?endpoint=https://host:port&region=R&profile=P&path-style=yes";

const OPTIONS: readonly string[] = ["endpoint", "region", "profile", "path-style"];

/** Whether this text names an object store and not a path. */
export function isS3Address(text: string): boolean {
  return text.startsWith(SCHEME);
}

/**
 * Reads `s3://BUCKET/PREFIX?endpoint=…&region=…&profile=…&path-style=yes|no`.
 * @throws {UsageError} `E_S3_ADDRESS`
 */
export function parseS3Address(text: string): S3Address {
  const refuse = (why: string): UsageError => {
    const address = toBeShown(text);
    const message = `${address} is no address of a repository: ${why}. It is ${EXAMPLE}`;
    return new UsageError("E_S3_ADDRESS", message, { details: { address } });
  };
  if (!isS3Address(text)) throw refuse(`it does not begin with ${SCHEME}`);
  const [path = "", options, ...more] = text.slice(SCHEME.length).split("?");
  if (more.length > 0) throw refuse("it has two question marks");
  const [bucket = "", ...names] = path.split("/");
  if (bucket === "") throw refuse("the bucket is missing");
  // A secret may have slashes and question marks.
  if (bucket.includes("@") || (bucket.includes(":") && text.includes("@"))) {
    throw refuse(
      "credentials do not belong into an address, where others see them: put them into ~/.aws/credentials",
    );
  }
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$/.test(bucket)) {
    throw refuse(`no bucket can be called ${JSON.stringify(bucket)}`);
  }
  return { bucket, prefix: prefixOf(names, refuse), ...optionsOf(options ?? "", refuse) };
}

/** A text that is no address, to be shown: also without the values of options that no address has. */
function toBeShown(text: string): string {
  const [path = "", ...options] = withoutSecrets(text).split("?");
  const shown = options.map((each) =>
    each
      .split("&")
      .map((option) =>
        OPTIONS.includes(option.split("=")[0] ?? "") ? option : option.replace(/=.*$/s, "=***"),
      )
      .join("&"),
  );
  return [path, ...shown].join("?");
}

/** The address in the form that `parseS3Address` reads. */
export function formatS3Address({ bucket, prefix, endpoint, region, profile, pathStyle }: S3Address): string {
  const style = pathStyle === undefined ? undefined : pathStyle ? "yes" : "no";
  const options = Object.entries({ endpoint, region, profile, "path-style": style })
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name}=${value}`);
  const path = `${SCHEME}${bucket}/${prefix}`.replace(/\/$/, "");
  return options.length === 0 ? path : `${path}?${options.join("&")}`;
}

/**
 * Whether two addresses lead to the same objects. Both have to name their endpoints; how one gets in, by
 * which region, profile or style of path, makes no difference.
 */
export function isSameStore(one: S3Address, other: S3Address): boolean {
  if (one.bucket !== other.bucket || one.prefix !== other.prefix) return false;
  return originOf(one.endpoint) === originOf(other.endpoint);
}

/** AWS has many endpoints for one set of buckets, but another set in China. */
function originOf(endpoint = AWS_ENDPOINT): string {
  return /(^|\.)amazonaws\.com$/.test(new URL(endpoint).hostname) ? AWS_ENDPOINT : plainEndpoint(endpoint);
}

/**
 * An endpoint as all write it, without credentials.
 * @throws {TypeError} it is no URL of a store. `user:SECRET@host` is one of a protocol `user`, with the secret
 *   in its path.
 */
export function plainEndpoint(endpoint: string): string {
  const { protocol, host, pathname } = new URL(endpoint);
  if (protocol !== "https:" && protocol !== "http:") throw new TypeError("no URL of a store");
  return `${protocol}//${host}${pathname.replace(/\/+$/, "")}`;
}

function prefixOf(names: readonly string[], refuse: (why: string) => UsageError): string {
  const given = names.at(-1) === "" ? names.slice(0, -1) : names;
  for (const name of given) {
    if (name === "" || name === "." || name === "..") {
      throw refuse(`${JSON.stringify(name)} is no name in a prefix`);
    }
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not be there.
    if (/[\u0000-\u001f\u007f-\u009f\\]/.test(name)) {
      throw refuse("a prefix has no control characters and no backslash");
    }
  }
  const prefix = given.map((name) => `${name}/`).join("");
  if (Buffer.byteLength(prefix) > MOST_PREFIX_BYTES) {
    throw refuse(`a prefix has at most ${MOST_PREFIX_BYTES} bytes`);
  }
  return prefix;
}

function optionsOf(
  text: string,
  refuse: (why: string) => UsageError,
): Pick<S3Address, "endpoint" | "region" | "profile" | "pathStyle"> {
  const found = new Map<string, string>();
  for (const option of text === "" ? [] : text.split("&")) {
    const [name = "", ...values] = option.split("=");
    const value = values.join("=");
    if (!OPTIONS.includes(name)) {
      // What follows an "&" in a secret looks like a name.
      throw refuse(
        text.includes("@") ? "it has an unknown option" : `there is no option ${JSON.stringify(name)}`,
      );
    }
    if (value === "" || found.has(name)) throw refuse(`${name} needs one value`);
    found.set(name, value);
  }
  const style = found.get("path-style");
  if (style !== undefined && style !== "yes" && style !== "no") throw refuse("path-style is yes or no");
  return {
    endpoint: endpointOf(found.get("endpoint"), refuse),
    region: found.get("region"),
    profile: found.get("profile"),
    pathStyle: style === undefined ? undefined : style === "yes",
  };
}

function endpointOf(text: string | undefined, refuse: (why: string) => UsageError): string | undefined {
  if (text === undefined) return undefined;
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || (url.protocol !== "https:" && url.protocol !== "http:")) {
    throw refuse("an endpoint is a URL that begins with https:// or http://");
  }
  if (url.username !== "" || url.password !== "") {
    throw refuse("credentials do not belong into an endpoint, where others see them");
  }
  return text;
}
