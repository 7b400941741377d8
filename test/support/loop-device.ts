import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa, execaSync } from "execa";
import { describeIfAble, findTool } from "./tools.js";

const losetup = findTool("losetup");

export interface LoopDevice extends AsyncDisposable {
  readonly path: string;
}

/** A block device backed by a file; disposing detaches it. */
export async function attachLoop(file: string, ...args: readonly string[]): Promise<LoopDevice> {
  const { stdout: path } = await execa(losetup ?? "losetup", ["--find", "--show", ...args, file]);
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      await execa(losetup ?? "losetup", ["--detach", path], { reject: false });
    },
  };
}

/**
 * `describe` if loop devices can be made, which needs root and a permissive kernel; otherwise a skip by name,
 * or a failure with `CI=true`.
 */
export function describeWithLoop(title: string, body: () => void): void {
  describeIfAble("loop", obstacleToLoops(), title, body);
}

function obstacleToLoops(): string | undefined {
  if (losetup === undefined) return "not installed: losetup";
  const folder = mkdtempSync(join(tmpdir(), "nbdpull-loop-"));
  try {
    const file = join(folder, "probe");
    writeFileSync(file, Buffer.alloc(4096));
    const made = execaSync(losetup, ["--find", "--show", file], { reject: false });
    if (made.failed) return "no loop devices can be made here";
    closeSync(openSync(made.stdout, "r+"));
    execaSync(losetup, ["--detach", made.stdout]);
    return undefined;
  } catch {
    return "loop devices can't be opened here";
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
