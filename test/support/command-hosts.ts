/** The built command, run by processes that stay: a start takes a third of a second of processor time. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import type { Socket } from "node:net";
import { fileURLToPath } from "node:url";

const HOST = fileURLToPath(new URL("command-host.mjs", import.meta.url));
/** Each call keeps a little memory. */
const MOST_CALLS = 100;

/** How a run in a host ended. */
export interface HostedRun {
  /** Null if a signal ended the host with it. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** By the Node that runs them. */
const idle = new Map<string, CommandHost[]>();

/**
 * Runs the program with these arguments (`argv` from its second word on) in a process that has run others
 * before. It has the folder and umask of this process.
 * @param options the Node, by default the one that runs this; and the whole environment, by default this one
 */
export async function runInHost(
  argv: readonly string[],
  {
    node = process.execPath,
    env = process.env,
  }: { readonly node?: string; readonly env?: NodeJS.ProcessEnv } = {},
): Promise<HostedRun> {
  const hosts = idle.get(node) ?? [];
  idle.set(node, hosts);
  let host = hosts.pop();
  // What ends a host between two runs would come after the end of a process that has run one command.
  while (host && !host.isUsable) host = hosts.pop();
  host ??= new CommandHost(node);
  const ended = await host.run(argv, env);
  if (host.isUsable) hosts.push(host);
  else host.end();
  return ended;
}

class CommandHost {
  readonly #process: ChildProcess;
  readonly #said = { stdout: "", stderr: "" };
  #calls = 0;
  #end: { readonly code: number | null } | undefined;
  #heard: () => void = () => undefined;

  constructor(node: string) {
    this.#process = spawn(node, [HOST], { stdio: ["pipe", "pipe", "pipe", "ipc"] });
    for (const name of ["stdout", "stderr"] as const) {
      const stream = this.#process[name] as Socket;
      stream.setEncoding("utf8").on("data", (text: string) => {
        this.#said[name] += text;
        this.#heard();
      });
      // It ends with this process, which it doesn't keep alive.
      stream.unref();
    }
    this.#process.on("close", (code) => {
      this.#end = { code };
      this.#heard();
    });
    this.#process.on("error", () => undefined);
    (this.#process.stdin as Socket).unref();
    this.#process.unref();
    this.#process.channel?.unref();
  }

  get isUsable(): boolean {
    return this.#end === undefined && this.#calls < MOST_CALLS;
  }

  async run(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<HostedRun> {
    this.#calls += 1;
    const mark = randomUUID();
    this.#process.send(
      {
        number: this.#calls,
        argv,
        env,
        folder: process.cwd(),
        umask: process.umask(),
        mark,
      },
      () => undefined,
    );
    for (;;) {
      const [stdout, stderr] = [this.#said.stdout, this.#said.stderr].map((text) => text.split(`${mark} `));
      const [said = "", code] = stdout ?? [];
      const [errors = "", isDone] = stderr ?? [];
      if (code?.endsWith("\n") && isDone?.endsWith("\n")) {
        Object.assign(this.#said, { stdout: "", stderr: "" });
        return { code: Number(code), stdout: said, stderr: errors };
      }
      if (this.#end) return { ...this.#said, code: this.#end.code };
      await new Promise<void>((resolve) => {
        this.#heard = resolve;
      });
    }
  }

  end(): void {
    if (this.#process.connected) this.#process.disconnect();
  }
}
