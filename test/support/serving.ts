/** `nbdpull serve`, running beside a test. */
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { execa } from "execa";

const NBDPULL = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "dist", "bin", "nbdpull.js");

export interface Ended {
  readonly code: number | undefined;
  readonly signal: string | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Serving extends AsyncDisposable {
  /** What it printed when it was ready. */
  readonly ready: string;
  readonly uris: readonly string[];
  /** Its error output so far. */
  readonly stderr: () => string;
  /** Sends the signal (default SIGTERM) and waits for the end. */
  stop(signal?: NodeJS.Signals): Promise<Ended>;
  readonly ended: Promise<Ended>;
}

/** Starts it and waits until it has printed its result; rejects with its error output if it ends before. */
export function startServing(...args: readonly string[]): Promise<Serving> {
  return startServingBy(process.execPath, ...args);
}

/** Likewise, with this Node. */
export async function startServingBy(node: string, ...args: readonly string[]): Promise<Serving> {
  const child = execa(node, [NBDPULL, "serve", ...args], { reject: false });
  const ended = child.then(({ exitCode: code, signal, stdout, stderr }): Ended => {
    return { code, signal, stdout, stderr };
  });
  let said = "";
  child.stderr.on("data", (text: Buffer) => {
    said += text.toString();
  });
  const ready = await new Promise<string>((resolve, reject) => {
    let printed = "";
    child.stdout.on("data", (text: Buffer) => {
      printed += text.toString();
      if (args.includes("--json") ? printed.endsWith("}\n") : printed.endsWith("\n")) resolve(printed);
    });
    void ended.then(({ code, stderr }) => reject(new Error(`serve ended with ${code}: ${stderr}`)));
  });
  const stop = (signal: NodeJS.Signals = "SIGTERM"): Promise<Ended> => {
    child.kill(signal);
    return ended;
  };
  return {
    ready,
    uris: ready.trim().split("\n"),
    stderr: () => said,
    stop,
    ended,
    [Symbol.asyncDispose]: async () => {
      await stop();
    },
  };
}
