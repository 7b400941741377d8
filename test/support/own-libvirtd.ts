import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { listensOn } from "../nbd/servers.js";

/** Where a libvirtd keeps what it knows: of the system's it sees nothing. */
const HIDDEN = ["/run/libvirt", "/var/lib/libvirt", "/etc/libvirt", "/var/cache/libvirt"];
const SCRIPT = `
for path in ${HIDDEN.join(" ")}; do mount -t tmpfs none $path; done
cp "$0/qemu.conf" /etc/libvirt/qemu.conf
exec libvirtd -f "$0/libvirtd.conf" -p "$0/pid"`;
/** QEMU writes its output itself, as there is no virtlogd, and is no part of this host's control groups. */
const QEMU_CONF = `
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = []
namespaces = []
user = "root"
group = "root"
`;

/** For a daemon that hangs. libvirt itself waits half a minute for whatever holds a domain. */
const VIRSH_WITHIN_MS = 90_000;

function launch(folder: string) {
  return execa("unshare", ["--mount", "sh", "-euc", SCRIPT, folder], { reject: false, stdin: "ignore" });
}
type Daemon = ReturnType<typeof launch>;

/**
 * A libvirtd of a test's own, which may be stopped for a while, as the system's may not: other tests use that
 * one. Its domains are to be ended before it is disposed of.
 */
export class OwnLibvirtd implements AsyncDisposable {
  readonly folder: string;
  readonly #daemon: Daemon;

  private constructor(folder: string, daemon: Daemon) {
    this.folder = folder;
    this.#daemon = daemon;
  }

  static async start(): Promise<OwnLibvirtd> {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-libvirtd-"));
    const config = ['auth_unix_rw = "none"', `unix_sock_dir = "${folder}"`, ""];
    await writeFile(join(folder, "libvirtd.conf"), config.join("\n"));
    await writeFile(join(folder, "qemu.conf"), QEMU_CONF);
    const daemon = launch(folder);
    const own = new OwnLibvirtd(folder, daemon);
    const deadline = Date.now() + 120_000;
    while (!(await listensOn(own.#socket))) {
      await sleep(20);
      if (daemon.exitCode === null && Date.now() < deadline) continue;
      await own[Symbol.asyncDispose]();
      throw new Error(`libvirtd does not listen: ${(await daemon).stderr}`);
    }
    return own;
  }

  get #socket(): string {
    return join(this.folder, "libvirt-sock");
  }

  get uri(): string {
    return `qemu+unix:///system?socket=${this.#socket}`;
  }

  async virsh(...args: readonly string[]): Promise<string> {
    const options = { env: { LC_ALL: "C" }, timeout: VIRSH_WITHIN_MS };
    return (await execa("virsh", ["-c", this.uri, ...args], options)).stdout;
  }

  /** From now on it does nothing, though its sockets are open. Disposing lets it go on. */
  stop(): Disposable {
    this.#daemon.kill("SIGSTOP");
    return { [Symbol.dispose]: () => void this.#daemon.kill("SIGCONT") };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#daemon.kill("SIGCONT");
    // One that is stuck gets a SIGKILL five seconds later, by execa.
    this.#daemon.kill("SIGTERM");
    await this.#daemon;
    await rm(this.folder, { recursive: true, force: true });
  }
}
