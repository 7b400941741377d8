import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { messageOf } from "../base/errors.js";
import type { Virsh } from "./virsh.js";

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
 * now.
 *
 * @returns a warning if the domain stays defined
 * @throws {BackupError} `E_VIRSH`: libvirt doesn't take the definition; or as {@link Virsh} does
 */
export async function tryDefinition(virsh: Virsh, trial: Trial): Promise<string | undefined> {
  // Without the signal, which could leave the domain defined.
  const steady = virsh.withSignal(undefined);
  const folder = await mkdtemp(join(tmpdir(), "nbdpull-define-"));
  try {
    const path = join(folder, "trial.xml");
    await writeFile(path, trial.xml, { flag: "wx", mode: 0o600 });
    await steady.define(trial.name, path);
  } catch (error) {
    // libvirt may have defined it: a virsh that was killed says nothing. Nobody else's domain has this UUID.
    await steady.undefine(trial).catch(() => undefined);
    throw error;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  try {
    await steady.undefine(trial);
    return undefined;
  } catch (error) {
    return `the domain ${trial.name} was defined as a trial and could not be removed (${messageOf(error)}): virsh undefine ${trial.name}`;
  }
}
