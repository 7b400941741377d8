/**
 * A domain whose NVRAM lies in a folder of QEMU's user, who is the attacker, and a point that is being made.
 */
import {
  chmod,
  chown,
  link,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { keepFiles } from "../../src/backup/guest/keep-files.js";
import { ATTACKER } from "./attacker.js";

export const SECRET = "root:$y$secret";

interface Outcome {
  /** Roles of the files that the point has. */
  readonly kept: readonly string[];
  /** Why the others were not kept. */
  readonly reasons: readonly string[];
}

export class KeptLab implements AsyncDisposable {
  readonly folder: string;
  /** The folder that the attacker owns. */
  readonly theirs: string;
  /** The NVRAM's path in the definition. */
  readonly nvram: string;
  /** A file that only root can read. */
  readonly secret: string;
  readonly point: string;

  readonly #way: string;

  private constructor(folder: string) {
    this.folder = folder;
    this.theirs = join(folder, "nvram");
    this.nvram = join(this.theirs, "web_VARS.fd");
    this.secret = join(folder, "shadow");
    this.point = join(folder, "point");
    this.#way = join("/run", basename(folder));
  }

  static async start(): Promise<KeptLab> {
    const lab = new KeptLab(await mkdtemp(join(tmpdir(), "nbdpull-kept-")));
    // The attacker has to get to his own folder.
    await chmod(lab.folder, 0o755);
    await mkdir(lab.theirs);
    await chown(lab.theirs, ATTACKER, ATTACKER);
    await mkdir(lab.point, { mode: 0o700 });
    await writeFile(lab.secret, SECRET, { mode: 0o600 });
    return lab;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#way, { force: true });
    await rm(this.folder, { recursive: true, force: true });
  }

  /** Keeps the files of the domain as a backup does; resolves with what was kept and why the rest was not. */
  async keep(role = "nvram"): Promise<Outcome> {
    return await this.keepAt(this.nvram, role);
  }

  /** The same for a definition that names another path. */
  async keepAt(path: string, role = "nvram"): Promise<Outcome> {
    await rm(this.point, { recursive: true });
    await mkdir(this.point, { mode: 0o700 });
    const uuid = "7f2f3c7e-7c0e-4f0a-9f33-0c8a2d0e1f10";
    const label = `<seclabel model='dac'><label>+${ATTACKER}:+${ATTACKER}</label></seclabel>`;
    const xml = `<domain id='3'><name>web</name><uuid>${uuid}</uuid><os><${role}>${path}</${role}></os>${label}</domain>`;
    const { files, notKept } = await keepFiles({ xml, host: undefined }, this.point, { sync: false });
    return { kept: files.map((file) => file.role), reasons: notKept.map(({ reason }) => reason) };
  }

  /** Gives the secret a second name in the place of the NVRAM, as its owner. */
  async hardLink(): Promise<void> {
    await link(this.secret, this.nvram);
  }

  /** Makes the NVRAM a file of another user, or of root. */
  async giveTo(uid: number): Promise<void> {
    await rm(this.nvram);
    await writeFile(this.nvram, "variables", { mode: 0o600 });
    await chown(this.nvram, uid, uid);
  }

  /** The path of the NVRAM through a link that root made in a folder of root's. */
  async behindLinkOfRoots(): Promise<string> {
    // Not below the temporary folder, in which everybody may make links.
    await symlink(this.theirs, this.#way);
    return join(this.#way, basename(this.nvram));
  }

  /** Everything that the point contains. */
  async stored(): Promise<string> {
    const names = await readdir(this.point);
    const texts = await Promise.all(names.map((name) => readFile(join(this.point, name), "latin1")));
    return texts.join("\n");
  }

  /** Bytes that the file system needs for a file of the point. */
  async allocated(name: string): Promise<number> {
    return (await stat(join(this.point, name))).blocks * 512;
  }
}
