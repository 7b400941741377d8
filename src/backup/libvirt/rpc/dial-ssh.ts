import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { oneLine } from "../../base/one-line.js";
import { LastWords } from "../../host/last-words.js";
import { quote, SSH_PROCESS, Ssh } from "../../host/ssh.js";
import type { Transport } from "./connection.js";
import type { DaemonWay } from "./daemon-address.js";

/** How long to wait, after the connection broke, until ssh has ended and told its reason. */
const NOTICE_MS = 2000;
/** ssh's own exit code for when it could not connect, or was disconnected. */
const SSH_FAILED = 255;

/**
 * One ssh, whose standard input and output are the connection. The program at the other end is
 * virt-ssh-helper, which knows the daemons of its host and starts that of a session; hosts before libvirt 6.8
 * have nc.
 *
 * That the host can't be reached shows only when the first call fails: see `Transport.reason`.
 *
 * @throws {PreconditionError} `E_NO_SSH`
 */
export async function dialSsh(way: DaemonWay & { kind: "ssh" }, uri: string): Promise<Transport> {
  const ssh = new Ssh(way.target);
  const { execa } = await import("execa");
  const child = execa(...ssh.command([], `exec sh -c ${quote(scriptOf(way, uri))}`), {
    ...SSH_PROCESS,
    stdin: "pipe",
    buffer: false,
    encoding: "buffer",
  });
  const said = new LastWords();
  child.stderr.setEncoding("utf8").on("data", (text: string) => said.add(text));
  child.stdin.on("error", () => undefined);
  const exit = new Promise<number | null>((resolve) => child.once("exit", resolve));
  await new Promise<void>((resolve, reject) => {
    child.once("spawn", resolve);
    child.then(({ code, cause }) => reject(ssh.failure({ stderr: said.text, code, cause })), reject);
  });
  // Pipes to a process are sockets.
  const { stdin, stdout, stderr } = child as unknown as Record<"stdin" | "stdout" | "stderr", Socket>;
  const stream = Duplex.from({ readable: stdout, writable: stdin });
  return {
    stream,
    keepAwake: (awake) => {
      for (const each of [child, stdin, stdout, stderr]) each[awake ? "ref" : "unref"]();
    },
    reason: async () => {
      const code = await Promise.race([exit, sleep(NOTICE_MS, undefined, { ref: false })]);
      if (code === SSH_FAILED) return ssh.failure({ stderr: said.text }).message;
      return oneLine(said.text) || undefined;
    },
    close: () => {
      stream.destroy();
      child.kill("SIGTERM");
    },
  };
}

/**
 * Run by a POSIX shell on the other host. It is one line: the login shell that starts that shell may be csh,
 * which takes no line end between quotes.
 */
export function scriptOf(
  { sockets, netcat, proxy }: Pick<DaemonWay & { kind: "ssh" }, "sockets" | "netcat" | "proxy">,
  uri: string,
): string {
  const native = `exec virt-ssh-helper ${quote(uri)}`;
  // Without -q0, some versions of nc don't end at the end of their input.
  const connect = `if "$nc" -q 2>&1 | grep -q "requires an argument"; then exec "$nc" -q0 -U "$socket"; else exec "$nc" -U "$socket"; fi`;
  const none = quote(`no libvirt listens at ${sockets.join(" or ")}`);
  const through = `nc=${quote(netcat)}; for socket in ${sockets.map(quote).join(" ")}; do [ -S "$socket" ] || continue; ${connect}; done; echo ${none} >&2; exit 1`;
  if (proxy === "native") return native;
  if (proxy === "netcat") return through;
  return `if command -v virt-ssh-helper >/dev/null 2>&1; then ${native}; fi; ${through}`;
}
