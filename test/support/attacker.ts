/** A user without privileges, who may only change what belongs to him. */
import { execa } from "execa";

/** Debian's `nobody`. */
export const ATTACKER = 65534;

const AS_ATTACKER = ["--reuid", String(ATTACKER), "--regid", String(ATTACKER), "--clear-groups"];

/** Runs a shell script as the attacker, to its end. */
export async function attack(script: string): Promise<void> {
  await execa("setpriv", [...AS_ATTACKER, "sh", "-ec", script]);
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
