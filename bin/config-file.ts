/** The configuration file: TOML, whose keys are the names of options (bin/settings.ts has them). */
import { hasCode, PreconditionError, UsageError } from "../src/backup/base/errors.js";
import { openPlain } from "../src/backup/host/plain-files.js";
import { ChangeablePath, unchangeablePath } from "../src/backup/host/unchangeable-path.js";

const MOST_BYTES = 1024 ** 2;
/** The default one of a package is like that until somebody takes the mark away. */
const BLANK_OR_COMMENT = /^[\t ]*(?:#(?:\t|\P{Cc})*)?\r?$/u;
const OTHERWISE = " (or go without this file: --config /dev/null)";

/**
 * @returns undefined if there is none; of the default one also where this user may not read it
 * @throws {UsageError} `E_CONFIG`: it can't be read, or is no TOML
 * @throws {PreconditionError} `E_CONFIG_OTHERS`: others than root and this user could have written it
 */
export async function readConfigFile(
  path: string,
  options: { readonly isDefault: boolean },
): Promise<Readonly<Record<string, unknown>> | undefined> {
  const text = await read(path, options);
  if (text === undefined) return undefined;
  if (text.split("\n").every((line) => BLANK_OR_COMMENT.test(line))) return {};
  const { parse, TomlError } = await import("smol-toml");
  try {
    return parse(text);
  } catch (cause) {
    if (!(cause instanceof TomlError)) throw cause;
    const [what = ""] = cause.message.split("\n");
    throw configError(path, `line ${cause.line}: ${what.replace(/^Invalid TOML document: /, "")}`, cause);
  }
}

/** @param facts what else JSON shows of it */
export function configError(
  path: string,
  what: string,
  cause?: unknown,
  facts: Readonly<Record<string, unknown>> = {},
): UsageError {
  return new UsageError("E_CONFIG", `${path}: ${what}${OTHERWISE}`, { cause, details: { path, ...facts } });
}

async function read(
  path: string,
  { isDefault }: { readonly isDefault: boolean },
): Promise<string | undefined> {
  const us = [0, process.geteuid?.() ?? 0];
  try {
    const real = await unchangeablePath(path, us);
    await using file = await openPlain(real);
    const found = await file.stat();
    if (!found.isFile() || found.size > MOST_BYTES)
      throw configError(path, "it is no plain file of settings");
    if (!us.includes(found.uid)) throw others(path, `it belongs to user ${found.uid}`);
    if ((found.mode & 0o022) !== 0) throw others(path, "others can write to it");
    return await file.readFile("utf8");
  } catch (cause) {
    if (cause instanceof UsageError || cause instanceof PreconditionError) throw cause;
    if (cause instanceof ChangeablePath) throw others(path, cause.message);
    if (hasCode(cause, "ENOENT") || (isDefault && hasCode(cause, "EACCES"))) return undefined;
    throw configError(path, cause instanceof Error ? cause.message : String(cause), cause);
  }
}

function others(path: string, why: string): PreconditionError {
  const message = `${path} says what nbdpull does, but ${why}: look at what is in it, then chown root and chmod go-w${OTHERWISE}`;
  return new PreconditionError("E_CONFIG_OTHERS", message, { details: { path } });
}
