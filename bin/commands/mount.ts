import { once } from "node:events";
import { shellWord } from "../../src/backup/base/shell-word.js";
import { mountFiles, mountPoint } from "../../src/backup/mount/mount-point.js";
import { chooseDomain } from "../../src/backup/repository/choose-domain.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { type CacheOptions, cacheOf } from "../cache-options.js";
import type { WhoseOptions } from "../domain-options.js";
import type { Context } from "../run.js";
import { tellAssurance, tellCacheFailure, tellEvents } from "../served-point.js";
import { warnOfStrangers } from "../trust.js";

interface MountCommandOptions extends WhoseOptions, CacheOptions {
  readonly at: string;
  readonly disk?: string[];
  readonly files?: true;
}

export async function runMount(
  { output, signal }: Context,
  options: MountCommandOptions,
  path: string,
  wanted: string,
  folder: string,
): Promise<void> {
  const cache = cacheOf(options);
  const repository = await Repository.open(path, { signal });
  const domain = await chooseDomain(repository, wanted, options);
  await warnOfStrangers(path, [domain], output);
  const { at, uuid, disk } = options;
  const shown = {
    ...{ repository, domain, folder, at, uuid, disks: disk, signal },
    ...{ onEvent: tellEvents(output), cache, onCacheFailure: tellCacheFailure(output) },
  };
  await using mounted = options.files ? await mountFiles(shown) : await mountPoint(shown);
  const { disks, server } = mounted;
  const { point } = server;
  tellAssurance(disks, output);
  const about = { domain, uuid: point.domain.uuid, point: point.id };
  if (mounted.files) {
    const { fileSystems, leftOut } = mounted.files;
    for (const { device, type, reason } of leftOut) output.note(`${device} (${type}) is left out: ${reason}`);
    output.result(
      { ...about, disks: disks.map(({ path: _, ...each }) => each), fileSystems, leftOut },
      fileSystems.map((each) => each.path),
    );
  } else {
    output.result(
      { ...about, disks },
      disks.map((each) => each.path),
    );
  }
  output.note(
    `showing ${domain} ${point.id}, read-only, until Ctrl-C, SIGTERM, or nbdpull unmount ${shellWord(folder)}`,
  );
  // A mount normally ends by being stopped: that is no failure.
  if (!signal.aborted) await Promise.race([once(signal, "abort"), mounted.ended]);
}
