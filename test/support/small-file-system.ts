import { execa } from "execa";
import { describeIfAble, findTool } from "./tools.js";

/** Mounts a new file system of that size on a folder, until it is disposed of. Needs root. */
export async function mountSmall(folder: string, bytes: number): Promise<AsyncDisposable> {
  await execa(findTool("mount") ?? "mount", ["-t", "tmpfs", "-o", `size=${bytes}`, "tmpfs", folder]);
  return {
    [Symbol.asyncDispose]: async () => {
      await execa(findTool("umount") ?? "umount", ["--lazy", folder]);
    },
  };
}

/** `describe` if file systems can be mounted; otherwise a skip by name, or a failure with `CI=true`. */
export function describeWithMounts(title: string, body: () => void): void {
  describeIfAble("mount", process.getuid?.() === 0 ? undefined : "mounting needs root", title, body);
}
