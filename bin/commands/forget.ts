import { PreconditionError, UsageError } from "../../src/backup/base/errors.js";
import { type RetiredDomain, retireDomain, whyTheyStay } from "../../src/backup/guest/retire-domain.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { type Forgotten, forgetDomain, halfForgotten } from "../../src/backup/prune/forget.js";
import { chooseDomains } from "../../src/backup/repository/choose-domain.js";
import { foldersNamed } from "../../src/backup/repository/domain-folder.js";
import { folderNameOf } from "../../src/backup/repository/folder-name.js";
import { domainsAmong, isOwner, ownersOf, whichOwner } from "../../src/backup/repository/point-owners.js";
import { Repository } from "../../src/backup/repository/repository.js";
import type { WhoseOptions } from "../domain-options.js";
import { eachDomain } from "../each-domain.js";
import { EXIT } from "../exit-codes.js";
import type { TrustOptions } from "../options.js";
import { counted, human } from "../output.js";
import type { Context } from "../run.js";
import { prepareToWrite, requireTrust, warnOfStrangers } from "../trust.js";

interface ForgetCommandOptions extends TrustOptions, WhoseOptions {
  readonly all?: true;
  readonly dryRun?: true;
  readonly force?: true;
  readonly checkpoints?: true;
  readonly connect?: string;
}

interface ForgottenDomain extends Forgotten {
  readonly checkpoints: readonly string[];
}

export async function runForget(
  context: Context,
  options: ForgetCommandOptions,
  path: string,
  wanted: string | undefined,
): Promise<void> {
  const { output, signal } = context;
  const { dryRun = false, uuid } = options;
  refuseChoice(options, wanted);
  const repository = await Repository.open(path, {
    trusted: options.trustRepository,
    signal,
    onWarning: (message) => output.warn(message),
  });
  const retire = async (of: readonly string[]): Promise<string[]> => {
    const gone: string[] = [];
    for (const each of of) {
      const connect = (): Libvirt => new Libvirt({ signal, connect: options.connect });
      const { checkpoints, failed } = await retireDomain({ repository, uuid: each, connect, dryRun }).catch(
        (error: unknown): RetiredDomain => {
          const why = whyTheyStay(error);
          if (why === undefined || options.checkpoints) throw error;
          return {
            uuid: each,
            checkpoints: [],
            failed: [`its checkpoints stay: ${why}; then run this again with --checkpoints`],
          };
        },
      );
      gone.push(...checkpoints);
      for (const message of failed) output.warn(message);
    }
    return gone;
  };
  if (options.checkpoints && wanted !== undefined) {
    return await onlyCheckpoints(context, options, repository, wanted, retire);
  }
  const domains = await domainsOf(repository, wanted, uuid);
  if (dryRun) await warnOfStrangers(path, domains, output);
  else await prepareToWrite(path, domains, options, output);
  const forgetOne = async (domain: string): Promise<ForgottenDomain> => {
    let checkpoints: readonly string[] = [];
    const before = async ({ uuids }: { readonly uuids: readonly string[] }): Promise<void> => {
      checkpoints = await retire(uuids);
    };
    const onWarning = (message: string): void => output.warn(message);
    const forgotten = await forgetDomain({ repository, domain, uuid, dryRun, before, signal, onWarning });
    if (dryRun) await before(forgotten);
    return { ...forgotten, checkpoints };
  };
  const results = await eachDomain(domains, context, forgetOne, (done) =>
    output.part(asText(done, dryRun, repository.isInStore)),
  );
  const json = results.map((each) => ("error" in each ? each : each.result));
  output.result({ dryRun, domains: json }, domains.length > 0 ? [] : ["no restore points"]);
}

/** The named domain or all, with what a run left that was killed. */
async function domainsOf(
  repository: Repository,
  wanted: string | undefined,
  uuid: string | undefined,
): Promise<readonly string[]> {
  const left = await halfForgotten(repository);
  if (wanted === undefined) return [...new Set([...(await repository.domains()), ...left])].sort();
  const folder = folderNameOf(wanted);
  return left.includes(folder) ? [folder] : await chooseDomains(repository, wanted, uuid);
}

async function onlyCheckpoints(
  { output, signal }: Context,
  options: ForgetCommandOptions,
  repository: Repository,
  wanted: string,
  retire: (uuids: readonly string[]) => Promise<string[]>,
): Promise<void> {
  const { dryRun = false, connect } = options;
  const folders = await foldersNamed(repository, wanted);
  // Manifests say whose checkpoints go.
  if (dryRun) await warnOfStrangers(repository.path, folders, output);
  else await requireTrust(repository.path, folders, options, output);
  const uuid = await uuidAmong(repository, folders, wanted, options, () => new Libvirt({ signal, connect }));
  const checkpoints = uuid === undefined ? [] : await retire([uuid]);
  const lines = checkpoints.length === 0 ? [] : checkpointsText(checkpoints, dryRun);
  const head = lines.length > 0 ? `${wanted}:` : `${wanted}: no checkpoints that this host has made`;
  output.result({ dryRun, domain: wanted, checkpoints }, [head, ...lines]);
  if (!dryRun && output.warnings.length > 0) process.exitCode = EXIT.failed;
}

/**
 * The UUID of the one domain that is meant: of its points, or where they are gone already, of libvirt's.
 * @returns undefined: points of no known UUID are meant, which have no checkpoints
 * @throws {UsageError} `E_WHICH_DOMAIN`
 * @throws {PreconditionError} `E_NO_DOMAIN`: libvirt's has another UUID; `E_NO_SUCH_DOMAIN`
 */
async function uuidAmong(
  repository: Repository,
  folders: readonly string[],
  wanted: string,
  { uuid }: ForgetCommandOptions,
  connect: () => Libvirt,
): Promise<string | undefined> {
  if (uuid === "none") return undefined;
  const owners = new Set<string>();
  for (const folder of folders) {
    const points = await repository.points(folder, () => undefined);
    for (const owner of domainsAmong(ownersOf(points))) if (owner !== null) owners.add(owner);
  }
  const [only, ...others] = [...owners].filter((owner) => uuid === undefined || isOwner(owner, uuid));
  if (others.length > 0) throw whichOwner(`several domains called ${wanted}`, owners);
  if (only !== undefined) return only;
  await using libvirt = connect();
  const [name, found] = await Promise.all([libvirt.domainName(wanted), libvirt.domainUuid(wanted)]);
  // libvirt takes the number of a run for a domain, too.
  const isNamed = name === wanted || found === wanted.toLowerCase();
  if (isNamed && (uuid === undefined || isOwner(found, uuid))) return found;
  const message = `there are no such points of a domain ${wanted}, and libvirt's domain of that name is not the one that is meant: it is ${name} with the UUID ${found}. Nothing was deleted`;
  throw new PreconditionError("E_NO_DOMAIN", message, { details: { domain: wanted, uuid } });
}

/** @throws {UsageError} it isn't said of what, or that it is meant */
function refuseChoice(
  { all, dryRun, force, checkpoints, uuid }: ForgetCommandOptions,
  wanted: string | undefined,
): void {
  if ((wanted === undefined) === (all === undefined)) {
    throw new UsageError("E_USAGE", "forget takes DOMAIN, or --all for every domain of the repository");
  }
  if (all && (checkpoints || uuid !== undefined)) {
    throw new UsageError(
      "E_USAGE",
      `--all is about points of every domain: leave ${checkpoints ? "--checkpoints" : "--uuid"} out, or name a DOMAIN`,
    );
  }
  if (dryRun || force) return;
  const what = checkpoints
    ? `deletes the checkpoints of ${wanted}`
    : `removes every point of ${wanted ?? "every domain"} for ever`;
  throw new UsageError(
    "E_NOT_CONFIRMED",
    `this ${what}: say --force, or --dry-run to see what would go. Nothing was removed`,
  );
}

function asText(done: ForgottenDomain, dryRun: boolean, isInStore: boolean): string[] {
  const { domain, points, bytes, storedBytes, left, checkpoints } = done;
  if (points.length === 0) {
    // In a store the files are cleared away by whoever takes the lease, before they are counted.
    const what = isInStore ? "what a run has begun there" : `what a killed run left of it, ${human(bytes)}`;
    return [`${domain}: ${dryRun ? "would remove" : "removed"} ${what}`];
  }
  const count = counted(points.length, "point");
  return [
    `${domain}: ${dryRun ? "would forget" : "forgot"} ${count}, ${human(storedBytes)} stored, ${human(bytes)} of space`,
    ...points.map((id) => `    ${id}`),
    ...(checkpoints.length > 0 ? checkpointsText(checkpoints, dryRun) : []),
    ...left.map((name) => `    ${name} stays, as nbdpull did not make it`),
  ];
}

function checkpointsText(names: readonly string[], dryRun: boolean): string[] {
  const count = counted(names.length, "checkpoint");
  return [
    `    ${dryRun ? "would delete" : "deleted"} ${count} in libvirt`,
    ...names.map((name) => `        ${name}`),
  ];
}
