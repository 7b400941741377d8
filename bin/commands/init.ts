import { PreconditionError } from "../../src/backup/base/errors.js";
import { refuseAddress } from "../../src/backup/host/local-path.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { namesStore } from "../../src/backup/storage/open-store.js";
import type { TrustOptions } from "../options.js";
import type { Output } from "../output.js";
import type { Context } from "../run.js";
import { requireTrust } from "../trust.js";

export async function runInit({ output }: Context, options: TrustOptions, path: string): Promise<void> {
  if (namesStore(path)) return await initInStore(output, path);
  await refuseAddress(path);
  const known = await Repository.openIfThere(path);
  if (known) {
    const message = `${path} is a repository already (its id is ${known.id}), and stays as it is`;
    throw new PreconditionError("E_REPOSITORY_EXISTS", message, { details: { path, id: known.id } });
  }
  await requireTrust(path, undefined, options, output);
  const { id } = await Repository.openOrCreate(path, { trusted: options.trustRepository });
  output.result({ path, id }, [`${path}: a new repository, its id is ${id}`]);
}

async function initInStore(output: Output, path: string): Promise<void> {
  const { initStore } = await import("../../src/backup/repository/init-store.js");
  const { id, abilities } = await initStore(path);
  if (!abilities.conditionalCreate || !abilities.conditionalReplace) {
    output.warn(
      "the store takes no notice of conditions (If-None-Match, If-Match): let only one host write to this repository",
    );
  }
  output.result({ path, id, ...abilities }, [`${path}: a new repository, its id is ${id}`]);
}
