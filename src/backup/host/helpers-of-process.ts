import type { ChildProcess } from "node:child_process";

/** How long the output of a process may stay open after its end. */
const HELD_MS = 2000;

interface GroupLeader extends Pick<ChildProcess, "pid" | "once"> {
  readonly stdout: { destroy(): unknown } | null;
  readonly stderr: { destroy(): unknown } | null;
}

/**
 * Has execa settle at most two seconds after the process has ended, though its helpers hold its output: those
 * of ssh (`ProxyCommand`, `ProxyJump`) have its standard error, and may outlive it. Then the rest of its
 * group is killed, and the output is closed. Helpers that let it go stay: the master of shared connections
 * has some.
 *
 * @param child started with `detached`
 */
export function endWithHelpers(child: GroupLeader): void {
  child.once("exit", () => {
    const late = setTimeout(() => {
      killGroup(child);
      child.stdout?.destroy();
      child.stderr?.destroy();
    }, HELD_MS);
    child.once("close", () => clearTimeout(late));
  });
}

/** Kills the process and its helpers; it was started with `detached`. */
export function killGroup({ pid }: Pick<ChildProcess, "pid">): void {
  // Without a number it was never started.
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
