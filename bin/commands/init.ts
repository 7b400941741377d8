import { PreconditionError } from "../../src/backup/base/errors.js";
import { refuseAddress } from "../../src/backup/host/local-path.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { TrustOptions } from "../options.js";
import type { Context } from "../run.js";
import { requireTrust } from "../trust.js";

export async function runInit({ output }: Context, options: TrustOptions, path: string): Promise<void> {
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
