/** Tells whether a domain that is off is started meanwhile, even if it is off again by the next question. */
import { execa } from "execa";

/**
 * Listens to libvirt's events until disposed. If the connection to libvirt is lost it hears no more: this is
 * no proof that the domain was not started.
 */
export class StartWatch implements AsyncDisposable {
  /** Aborted when the domain is started. */
  readonly started: AbortSignal;
  readonly #virsh: ReturnType<typeof listen>;

  /** @param uri of the connection to libvirt */
  constructor(uuid: string, uri: string) {
    const controller = new AbortController();
    this.started = controller.signal;
    this.#virsh = listen(uuid, uri);
    let line = "";
    this.#virsh.stdout.on("data", (text: Buffer) => {
      line = `${line}${text}`.slice(-1024);
      // A start that failed is no such event.
      if (/^event 'lifecycle' for domain .*: Started /m.test(line)) controller.abort();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#virsh.kill("SIGTERM");
    await this.#virsh;
  }
}

/** `setpriv` ends virsh together with this process. */
function listen(uuid: string, uri: string) {
  const command = ["virsh", `--connect=${uri}`, "event", `--domain=${uuid}`, "--event=lifecycle", "--loop"];
  return execa("setpriv", ["--pdeathsig", "TERM", ...command], {
    env: { LC_ALL: "C" },
    stdin: "ignore",
    stderr: "ignore",
    buffer: false,
    reject: false,
    // Keeps Ctrl-C on the terminal from ending it before the backup has been cleared away.
    detached: true,
  });
}
