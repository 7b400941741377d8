import { chmod, chown, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa, execaSync } from "execa";

/** Neither root nor anybody who owns files. */
export const ATTACKER = 65_534;
const AS_ATTACKER = ["--reuid", String(ATTACKER), "--regid", String(ATTACKER), "--clear-groups"];

/** Why attacks can't be tried; undefined if they can. */
export const NO_ATTACKER = process.getuid?.() === 0 ? undefined : "needs root, to be somebody else too";

/** Runs a shell script as a user without any rights. @throws it fails: the attack itself is wrong then */
export async function attack(script: string, input = ""): Promise<void> {
  await execa("setpriv", [...AS_ATTACKER, "sh", "-eu", "-c", script], { input });
}

/** The same, while the caller waits. */
export function attackNow(script: string): void {
  execaSync("setpriv", [...AS_ATTACKER, "sh", "-eu", "-c", script]);
}

/** Lets the attacker write to a folder, and pass through those above it. */
export async function giveAway(folder: string, above: readonly string[]): Promise<void> {
  for (const path of above) await chmod(path, 0o711);
  await chown(folder, ATTACKER, ATTACKER);
}

/** A file in a folder that only root may enter. */
export async function secretIn(folder: string): Promise<{ folder: string; file: string; content: string }> {
  const secret = join(folder, "root-only");
  const content = "root:$6$a secret of root's:20000:0:99999:7:::\n".repeat(10);
  await mkdir(secret, { mode: 0o700 });
  await writeFile(join(secret, "shadow"), content, { mode: 0o600 });
  return { folder: secret, file: join(secret, "shadow"), content };
}

/** Runs a shell script as the attacker until the end of the scope. */
export function attackMeanwhile(script: string): AsyncDisposable {
  const running = execa("setpriv", [...AS_ATTACKER, "sh", "-c", script], { reject: false });
  return {
    [Symbol.asyncDispose]: async () => {
      running.kill("SIGKILL");
      await running;
    },
  };
}
