/** Certificates with which this machine's libvirt serves backup jobs while a test needs them. */
import { copyFile, mkdir, readdir, rm, rmdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

/**
 * libvirt's default for everything that QEMU serves. It is read when a job begins, so libvirt needs no
 * restart.
 */
const FOLDER = "/etc/pki/qemu";
/** Marks a folder of ours, which a killed test may have left, as opposed to the owner's. */
const MARK = "made-by-nbdpull-tests";
const NEEDED = ["ca-cert.pem", "server-cert.pem", "server-key.pem"];

/**
 * Puts an authority's certificates where libvirt finds them; disposing removes them.
 * @throws if the machine has its own certificates there
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
      // Fails, and leaves the folder, if it contains more.
      await rmdir(dirname(FOLDER)).catch(() => undefined);
    },
  };
}
