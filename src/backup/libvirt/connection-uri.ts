import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { messageOf, UsageError } from "../base/errors.js";
import { isMissing } from "../host/durable-files.js";

/** What libvirt.conf says of URIs. */
interface ClientConfig {
  /** `uri_aliases` */
  readonly aliases: ReadonlyMap<string, string>;
  /** `uri_default` */
  readonly default: string | undefined;
}

/**
 * The connection URI that libvirt's own programs would use: the one that was asked for, which may be an
 * alias; else `LIBVIRT_DEFAULT_URI`; else `uri_default` of libvirt.conf; else the system's libvirt for root,
 * and the user's own for others.
 *
 * @throws {UsageError} `E_LIBVIRT_URI`: libvirt.conf can't be read
 */
export async function resolveConnectionUri(connect: string | undefined): Promise<string> {
  if (connect?.includes("://")) return connect;
  const config = await readConfig();
  const asked = connect || process.env["LIBVIRT_DEFAULT_URI"] || config.default;
  if (asked) return config.aliases.get(asked) ?? asked;
  return isRoot() ? "qemu:///system" : "qemu:///session";
}

/** Where a user's own daemons have their sockets. */
export function runtimeFolder(): string {
  return process.env["XDG_RUNTIME_DIR"] ?? process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache");
}

async function readConfig(): Promise<ClientConfig> {
  const folder = isRoot() ? "/etc" : (process.env["XDG_CONFIG_HOME"] ?? join(homedir(), ".config"));
  const path = join(folder, "libvirt", "libvirt.conf");
  try {
    return parseClientConfig(await readFile(path, "utf8"));
  } catch (cause) {
    if (isMissing(cause)) return parseClientConfig("");
    const message = `${path}, which may name libvirt's default URI, can't be read: ${messageOf(cause)}. Name the URI with --connect`;
    throw new UsageError("E_LIBVIRT_URI", message, { cause, details: { path } });
  }
}

/**
 * Reads libvirt.conf. Its lines are `name = "text"` or `name = [ "text", … ]`, which may go over several
 * lines; `#` begins a comment. Pure.
 */
export function parseClientConfig(text: string): ClientConfig {
  const bare = text.replaceAll(/^[ \t]*#.*$/gm, "");
  const list = /^[ \t]*uri_aliases\s*=\s*\[([^\]]*)\]/m.exec(bare)?.[1] ?? "";
  const entries = [...list.matchAll(/["']([^"'=]+)=([^"']*)["']/g)];
  return {
    aliases: new Map(entries.map(([, name = "", uri = ""]): [string, string] => [name, uri])),
    default: /^[ \t]*uri_default\s*=\s*["']([^"']+)["']/m.exec(bare)?.[1],
  };
}

function isRoot(): boolean {
  return process.geteuid?.() === 0;
}
