/** A real terminal of a given width: a session of tmux, whose screen can be read. */
import { randomUUID } from "node:crypto";
import { execa } from "execa";
import { NBDPULL } from "./nbdpull.js";

const ROWS = 24;

export class Terminal implements AsyncDisposable {
  readonly #socket = `nbdpull-${randomUUID()}`;

  private constructor() {}

  /** @param env beside the test's own environment */
  static async open(columns: number, env: Readonly<Record<string, string>> = {}): Promise<Terminal> {
    const terminal = new Terminal();
    const variables = Object.entries(env).flatMap(([name, value]) => ["-e", `${name}=${value}`]);
    const size = ["-x", String(columns), "-y", String(ROWS)];
    await terminal.#tmux("new-session", "-d", ...size, ...variables, "PS1='$ ' exec sh -i");
    // Programs mostly write at the end of a screen that is full.
    await terminal.type(`printf '%0.s\\n' $(seq ${ROWS * 2}); clear; printf '%0.s\\n' $(seq ${ROWS})`);
    return terminal;
  }

  async type(line: string): Promise<void> {
    await this.#tmux("send-keys", "-l", line);
    await this.#tmux("send-keys", "Enter");
  }

  async interrupt(): Promise<void> {
    await this.#tmux("send-keys", "C-c");
  }

  /** Runs the command; its exit code is a line of its own in the end. */
  async nbdpull(...args: readonly string[]): Promise<void> {
    const words = [process.execPath, NBDPULL, ...args].map((word) => `'${word}'`);
    await this.type(`${words.join(" ")}; echo "exit $?"`);
  }

  async resize(columns: number): Promise<void> {
    await this.#tmux("resize-window", "-x", String(columns));
  }

  /**
   * The rows as they are on the screen and above it; with `colours` with their escapes. Empty ones are left
   * out.
   */
  async rows({ colours = false } = {}): Promise<string[]> {
    const all = await this.#tmux("capture-pane", "-p", "-S", "-200", ...(colours ? ["-e"] : []));
    return all.split("\n").filter((row) => row.trim() !== "");
  }

  /** The rows, with those put together that the terminal wrapped. */
  async lines(): Promise<string[]> {
    const all = await this.#tmux("capture-pane", "-p", "-J", "-S", "-200");
    return all.split("\n").filter((row) => row.trim() !== "");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#tmux("kill-server");
  }

  async #tmux(...args: readonly string[]): Promise<string> {
    return (await execa("tmux", ["-L", this.#socket, "-f", "/dev/null", ...args])).stdout;
  }
}
