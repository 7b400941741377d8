/** What this host has recorded about the repository, outside of it: see `checkpoint-record.ts`. */
import { shellWord } from "../base/shell-word.js";
import { lookAtCheckpointRecord as recorded } from "../guest/checkpoint-record.js";
import { usualStateFolder } from "../host/state-folder.js";
import { type Found, fail, pass, type Subject, warn } from "./check.js";

/** Checks whether this host knows the repository, and where. A backup is refused where it was not before. */
export async function lookAtRecord({ repository, domain, signal }: Subject): Promise<readonly Found[]> {
  if (!repository) return [];
  const here = await repository.realPath();
  const { folder, path, isThere, checkpoints } = await recorded(usualStateFolder(), repository.id, {
    domainUuid: domain?.uuid,
    signal,
  });
  if (path === undefined) {
    const cause = `this host has no record of the repository ${repository.id}: its next backup begins one, and takes checkpoints for the repository's by their names`;
    return [(await repository.domains()).length > 0 ? warn(cause) : pass(cause)];
  }
  if (!(await repository.isAt(path))) {
    const what = isThere ? "it is there still, so one of the two is a copy" : "it is no longer there";
    const advice = isThere
      ? "back up to one of the two only, or to a new repository"
      : "if it was moved, say so once with --moved; if you did not move it, somebody may have given this one its id";
    return [
      fail(
        "E_REPOSITORY_MOVED",
        `the repository ${repository.id} was last backed up to at ${path}: ${what}`,
        {
          advice,
          mend: isThere
            ? `cat ${shellWord(`${here}/nbdpull.json`)} ${shellWord(`${path}/nbdpull.json`)}`
            : `nbdpull backup ${shellWord(domain?.name ?? "DOMAIN")} --to ${shellWord(here)} --moved`,
          details: { path: here, recorded: path, record: folder },
        },
      ),
    ];
  }
  const known = domain ? `, with ${checkpoints} checkpoints of ${domain.name}` : "";
  return [pass(`this host knows it as ${repository.id}${known} (${folder})`)];
}
