import { PreconditionError, UsageError } from "../../src/backup/base/errors.js";
import { shellWord } from "../../src/backup/base/shell-word.js";
import { refuseAddress } from "../../src/backup/host/local-path.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { namesStore } from "../../src/backup/storage/open-store.js";
import type { TrustOptions } from "../options.js";
import type { Context } from "../run.js";
import { requireTrust } from "../trust.js";

interface InitOptions extends TrustOptions {
  readonly lifecycle?: true;
}

export async function runInit(
  { output, signal }: Context,
  options: InitOptions,
  path: string,
): Promise<void> {
  if (namesStore(path)) return await initInStore({ output, signal }, path, options);
  await refuseAddress(path, "repository");
  if (options.lifecycle) {
    throw new UsageError(
      "E_USAGE",
      `--lifecycle is for object stores, and ${path} is a path of this machine`,
    );
  }
  const known = await Repository.openIfThere(path);
  if (known) {
    const message = `${path} is a repository already (its id is ${known.id}), and stays as it is`;
    throw new PreconditionError("E_REPOSITORY_EXISTS", message, { details: { path, id: known.id } });
  }
  await requireTrust(path, undefined, options, output);
  const { id } = await Repository.openOrCreate(path, { trusted: options.trustRepository });
  output.result({ path, id }, [`${path}: a new repository, its id is ${id}`]);
}

async function initInStore(
  { output, signal }: Context,
  path: string,
  { lifecycle }: InitOptions,
): Promise<void> {
  const { unsafeStore } = await import("../../src/backup/repository/unsafe-store.js");
  const { endOldUploads, initStore } = await import("../../src/backup/repository/init-store.js");
  if (lifecycle) {
    const known = await Repository.openIfThere(path, { signal });
    if (known) {
      const rule = await endOldUploads(path, { signal });
      const text = `${path}: the repository stays as it is (its id is ${known.id})`;
      return output.result({ path, id: known.id, lifecycle: rule ? "put" : "there" }, [text, ruleText(rule)]);
    }
  }
  const { id, abilities } = await initStore(path, { signal });
  const unsafe = unsafeStore(abilities);
  if (unsafe !== undefined) output.warn(unsafe);
  const text = `${path}: a new repository, its id is ${id}`;
  if (!lifecycle) {
    const next = `uploads that a killed run leaves are ended by the next one; for domains that are never backed up again a rule of the bucket does it: nbdpull init --lifecycle ${shellWord(path)}`;
    return output.result({ path, id, ...abilities }, [text, next]);
  }
  const rule = await endOldUploads(path, { signal });
  output.result({ path, id, ...abilities, lifecycle: rule ? "put" : "there" }, [text, ruleText(rule)]);
}

function ruleText(isNew: boolean): string {
  return isNew
    ? "the bucket has a new rule, beside its others: uploads there that were begun a week ago are ended"
    : "the bucket has a rule already that ends old uploads there";
}
