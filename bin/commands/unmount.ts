import { unmountPoint } from "../../src/backup/mount/mount-point.js";
import type { Context } from "../run.js";

export async function runUnmount(
  { output }: Context,
  options: { readonly force?: true },
  folder: string,
): Promise<void> {
  const unmounted = await unmountPoint(folder, { force: options.force ?? false });
  output.result(
    { unmounted },
    unmounted.length > 0
      ? unmounted.map((path) => `unmounted ${path}`)
      : ["nothing was mounted any more; what a run left that was killed is removed"],
  );
}
