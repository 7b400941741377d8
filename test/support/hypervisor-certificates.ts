/** Certificates that this machine's libvirt serves backup jobs with, while a test needs them. */
import { copyFile, mkdir, readdir, rm, rmdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

/** libvirt's default for all that QEMU serves. It looks for it when a job begins, so it need not be restarted. */
const FOLDER = "/etc/pki/qemu";
/** Tells a folder of ours, which a killed test may have left, from one of the machine's owner. */
const MARK = "made-by-nbdpull-tests";
const NEEDED = ["ca-cert.pem", "server-cert.pem", "server-key.pem"];

/**
 * Puts an authority's certificates where libvirt finds them; disposing removes them.
 * @throws the machine has certificates of its own there
 */
export async function giveCertificates(authority: { readonly path: string }): Promise<AsyncDisposable> {
  const before = await readdir(FOLDER).catch((): string[] => []);
  if (before.length > 0 && !before.includes(MARK)) throw new Error(`${FOLDER} is in use: move it away`);
  await rm(FOLDER, { recursive: true, force: true });
  await mkdir(FOLDER, { recursive: true });
  await writeFile(join(FOLDER, MARK), "");
  for (const name of NEEDED) await copyFile(join(authority.path, name), join(FOLDER, name));
  return {
    [Symbol.asyncDispose]: async () => {
      await rm(FOLDER, { recursive: true });
      // Stays where there is more in it.
      await rmdir(dirname(FOLDER)).catch(() => undefined);
    },
  };
}
