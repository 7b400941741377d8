import { messageOf } from "../base/errors.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import { clearLeftTrials, markedTrial } from "./left-trials.js";

/** A domain that is defined only to see whether libvirt takes it. */
interface Trial {
  /** A name that no domain has. */
  readonly name: string;
  readonly uuid: string;
  readonly xml: string;
}

/**
 * Lets libvirt take a definition and forget it at once. Nothing else tells whether it will: its schema
 * (`--validate`) allows less than libvirt does, and `domxml-to-native` refuses what can't be started here and
 * now. Trials that killed processes left defined are removed first.
 *
 * @returns a warning if the domain stays defined
 * @throws {BackupError} `E_LIBVIRT_REFUSED`: libvirt doesn't take the definition; or as {@link Libvirt} does
 */
export async function tryDefinition(libvirt: Libvirt, trial: Trial): Promise<string | undefined> {
  // Without the signal, which could leave the domain defined.
  const steady = libvirt.withSignal(undefined);
  await clearLeftTrials(steady).catch(() => undefined);
  const xml = await markedTrial(trial.xml);
  try {
    await steady.define(trial.name, xml);
  } catch (error) {
    // Where its answer was lost, libvirt may have defined it. Nobody else's domain has this UUID.
    await steady.undefine(trial).catch(() => undefined);
    throw error;
  }
  try {
    await steady.undefine(trial);
    return undefined;
  } catch (error) {
    return `the domain ${trial.name} was defined as a trial and could not be removed (${messageOf(error)}): virsh undefine ${trial.name}`;
  }
}
