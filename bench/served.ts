import { execa } from "execa";
import { NBDPULL } from "./paths.js";

export interface ServedPoint extends AsyncDisposable {
  readonly uri: string;
}

/**
 * Starts `nbdpull serve` for one disk, and waits until clients can connect.
 * @param args those of `serve`, with a `--socket`
 */
export async function servePoint(args: readonly string[]): Promise<ServedPoint> {
  const server = execa(process.execPath, [NBDPULL, "serve", ...args], { reject: false, stdin: "ignore" });
  const stop = async (): Promise<void> => {
    server.kill("SIGTERM");
    await server;
  };
  const uri = await new Promise<string>((resolve, reject) => {
    server.stdout.once("data", (line: Buffer) => resolve(line.toString().trim()));
    void server.then(({ stderr }) => reject(new Error(`nothing is served: ${stderr}`)));
  });
  return { uri, [Symbol.asyncDispose]: stop };
}
