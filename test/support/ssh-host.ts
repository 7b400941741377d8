/**
 * A hypervisor reached by ssh: this machine's own libvirt behind an sshd of the test. For an honest test,
 * commands that run `inside` see neither libvirt's sockets nor the folder for scratch files; both are empty
 * there.
 */

import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { execa } from "execa";
import { freePort } from "../../bench/free-ports.js";
import { listensOn, type RunningServer, startServer } from "../nbd/servers.js";
import { findTool } from "./tools.js";

export const SSH_TOOLS = ["sshd", "ssh", "ssh-keygen"];

export class SshHost implements AsyncDisposable {
  /** For `--connect`. */
  readonly uri: string;
  readonly port: number;
  readonly #folder: string;
  #server: RunningServer | undefined;

  private constructor(folder: string, port: number) {
    this.#folder = folder;
    this.port = port;
    const parameters = { keyfile: join(folder, "user"), command: join(folder, "ssh"), no_tty: "1" };
    this.uri = `qemu+ssh://root@127.0.0.1:${port}/system?${new URLSearchParams(parameters)}`;
  }

  static async start(): Promise<SshHost> {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-ssh-"));
    const host = new SshHost(folder, await freePort());
    try {
      for (const name of ["host", "user"]) {
        await execa(findTool("ssh-keygen") ?? "ssh-keygen", [
          ...["-q", "-t", "ed25519", "-N", "", "-f", join(folder, name)],
        ]);
      }
      const key = (await readFile(join(folder, "host.pub"), "utf8")).trim();
      await writeFile(join(folder, "known"), `[127.0.0.1]:${host.port} ${key}\n`);
      const settings = [
        `UserKnownHostsFile ${join(folder, "known")}`,
        // Commands share one connection, as many users configure it.
        ...["ControlMaster auto", `ControlPath ${join(folder, "shared-%r")}`, "ControlPersist 20", ""],
      ];
      await writeFile(join(folder, "ssh_config"), settings.join("\n"));
      // The URI has no parameter for a configuration file, but one for the program.
      await writeFile(join(folder, "ssh"), `#!/bin/sh\nexec ssh -F ${join(folder, "ssh_config")} "$@"\n`);
      await chmod(join(folder, "ssh"), 0o755);
      await mkdir("/run/sshd", { recursive: true });
      await host.serve();
      return host;
    } catch (error) {
      await host[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Starts sshd, with additional lines in its configuration. */
  async serve(...more: readonly string[]): Promise<void> {
    await this.end();
    const config = join(this.#folder, "sshd_config");
    const at = (name: string): string => join(this.#folder, name);
    const lines = [
      ...[`Port ${this.port}`, "ListenAddress 127.0.0.1", `HostKey ${at("host")}`],
      ...[`AuthorizedKeysFile ${at("user.pub")}`, "StrictModes no", `PidFile ${at("pid")}`, "UsePAM no"],
      ...["PermitRootLogin prohibit-password", "MaxStartups 100"],
      // The startup files of root's shell must not run; they could be slow.
      ...[`SetEnv HOME=${this.#folder}`, ...more, ""],
    ];
    await writeFile(config, lines.join("\n"));
    // Sessions outlive sshd, and would keep its output open.
    const script = 'exec "$0" -D -f "$1" -E "$2" > /dev/null 2>&1';
    const args = ["-c", script, findTool("sshd") ?? "/usr/sbin/sshd", config, at("log")];
    this.#server = await startServer("sh", args, () => listensOn(this.port));
  }

  /** Stops accepting connections; existing ones continue. */
  async end(): Promise<void> {
    await this.#server?.[Symbol.asyncDispose]();
    this.#server = undefined;
  }

  /** Kills the processes of every connection; new ones are possible. */
  async cut(): Promise<void> {
    const pid = (await readFile(join(this.#folder, "pid"), "utf8")).trim();
    const children = await readFile(`/proc/${pid}/task/${pid}/children`, "utf8");
    for (const child of children.split(" ").filter(Boolean)) process.kill(Number(child), "SIGKILL");
  }

  /** Runs the given command where `folder` and libvirt's sockets are hidden. */
  inside(folder: string): string[] {
    const script = 'mount -t tmpfs none "$0" && mount -t tmpfs none /run/libvirt && exec "$@"';
    return ["unshare", "--mount", "sh", "-c", script, folder];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
    await rm(this.#folder, { recursive: true, force: true });
  }
}
