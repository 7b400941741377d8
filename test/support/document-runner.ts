/** Runs the commands of a page in an environment in which its names are a test's own. */
import { type ChildProcess, spawn } from "node:child_process";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { expect } from "vitest";
import { type Block, blocksOf, isOfCommands, type Step, stepsOf, withoutNumbers } from "./document-blocks.js";
import { NBDPULL } from "./nbdpull.js";

export interface RunnerOptions {
  /** A folder of the test's, in which the folders of the pages are: `/srv`, `/mnt` and so on. */
  readonly root: string;
  /** What else has to have another name here, in this order; asked for anew for each command. */
  readonly names: () => readonly (readonly [RegExp, string])[];
  /** What blocks ask for by `<!-- run: NAME -->`. */
  readonly preparations?: Readonly<Record<string, () => Promise<void>>>;
  readonly env?: Readonly<Record<string, string>>;
}

const FOLDERS =
  /(?<![\w.}])\/(srv|mnt|tmp|etc|var\/tmp|var\/backups|var\/www|var\/lib\/libvirt\/images|var\/lib\/prometheus)\b/g;

export class DocumentRunner implements AsyncDisposable {
  readonly #options: RunnerOptions;
  readonly #bin: string;
  readonly #background: { readonly child: ChildProcess; readonly ended: Promise<void> }[] = [];

  private constructor(options: RunnerOptions) {
    this.#options = options;
    this.#bin = join(options.root, "bin");
  }

  static async start(options: RunnerOptions): Promise<DocumentRunner> {
    const runner = new DocumentRunner(options);
    const folders = [
      "bin",
      "srv",
      "mnt",
      "tmp",
      "etc",
      "home",
      "var/tmp",
      "var/www/html",
      "var/lib/libvirt/images",
    ];
    for (const name of [...folders, "var/lib/prometheus/node-exporter"]) {
      await mkdir(join(options.root, name), { recursive: true });
    }
    const program = join(runner.#bin, "nbdpull");
    await writeFile(program, `#!/bin/sh\nexec '${process.execPath}' '${NBDPULL}' "$@"\n`);
    await chmod(program, 0o755);
    return runner;
  }

  /** Runs every command of a page that isn't marked as one that can't be, in their order. */
  async run(page: string): Promise<void> {
    await writeFile(join(this.#options.root, "etc", "nbdpull.toml"), "");
    for (const block of blocksOf(page)) {
      if (block.notRun === undefined) await this.#runBlock(block);
    }
    await this.#endBackground();
  }

  async #runBlock(block: Block): Promise<void> {
    const file = /^# (\/etc\/\S+)$/.exec(block.lines[0] ?? "")?.[1];
    if (block.language === "toml" && file !== undefined) {
      await writeFile(this.#named(file), this.#named(block.lines.join("\n")));
    }
    if (!isOfCommands(block)) return;
    let code = 0;
    for (const word of block.run) {
      const prepare = this.#options.preparations?.[word];
      if (/^exit \d+$/.test(word)) code = Number(word.slice(5));
      else if (word === "when others have ended") await this.#endBackground();
      else if (prepare) await prepare();
      else if (word !== "background") throw new Error(`${where(block)}: no preparation is called ${word}`);
    }
    const steps = stepsOf(block);
    for (const [index, step] of steps.entries()) {
      const isLast = index === steps.length - 1;
      if (isLast && block.run.includes("background")) await this.#begin(block, step);
      else await this.#do(block, step, isLast ? code : 0);
    }
  }

  async #do(block: Block, step: Step, code: number): Promise<void> {
    const command = this.#named(step.command);
    const shown = /^cat (\w+\.xml)$/.exec(command)?.[1];
    if (shown !== undefined)
      await writeFile(join(this.#how().cwd, shown), this.#named(step.output?.join("\n") ?? ""));
    const args = ["-eu", "-o", "pipefail", "-c", command];
    const ran = await execa("bash", ["--norc", ...args], { all: true, reject: false, ...this.#how() });
    expect(`${where(block)}: ${command}\n${ran.exitCode === code ? "" : ran.all}exit ${ran.exitCode}`).toBe(
      `${where(block)}: ${command}\nexit ${code}`,
    );
    this.#compare(block, step, ran.all);
  }

  /** Starts a command that goes on, and waits for its first line. */
  async #begin(block: Block, step: Step): Promise<void> {
    const command = this.#named(step.command);
    const args = ["-eu", "-c", `exec ${command}`];
    const child = spawn("bash", ["--norc", ...args], { stdio: ["ignore", "pipe", "pipe"], ...this.#how() });
    const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
    this.#background.push({ child, ended });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (bytes) => {
        said += bytes;
      });
    }
    const isReady = (): boolean => child.exitCode !== null || said.includes("\n");
    await expect.poll(isReady, { message: `${where(block)}: ${command}` }).toBe(true);
    expect(child.exitCode, `${where(block)}: ${command}\n${said}`).toBeNull();
    this.#compare(block, step, said);
  }

  /** Each line that the page shows is printed, in this order; `…` stands for anything. */
  #compare(block: Block, step: Step, printed: string): void {
    let rest = printed.split("\n").map(withoutNumbers);
    for (const line of step.output ?? []) {
      const parts = withoutNumbers(this.#named(line)).split("…");
      const pattern = new RegExp(
        `^${parts.map((part) => part.replace(/[$()*+.?[\\\]^{|}]/g, "\\$&")).join(".*")}$`,
      );
      const at = rest.findIndex((each) => pattern.test(each));
      expect(at, `${where(block)}: this is not printed: ${line}\nbut:\n${printed}`).not.toBe(-1);
      rest = rest.slice(at + 1);
    }
  }

  #how(): { cwd: string; env: Record<string, string> } {
    const { root, env } = this.#options;
    const PATH = `${this.#bin}:${process.env["PATH"]}:/usr/sbin:/sbin`;
    const own = { PATH, LC_ALL: "C.UTF-8", HOME: join(root, "home") };
    const config = {
      NBDPULL_CONFIG: join(root, "etc", "nbdpull.toml"),
      NBDPULL_SCRATCH: join(root, "var/tmp"),
    };
    return {
      cwd: join(root, "home"),
      env: { ...(process.env as Record<string, string>), ...own, ...config, ...env },
    };
  }

  #named(text: string): string {
    const inside = text.replaceAll(FOLDERS, `${this.#options.root}/$1`);
    return this.#options.names().reduce((line, [pattern, name]) => line.replaceAll(pattern, name), inside);
  }

  /** The last one first: it may need those before it. */
  async #endBackground(): Promise<void> {
    for (const { child, ended } of this.#background.splice(0).toReversed()) {
      child.kill("SIGTERM");
      await ended;
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#endBackground();
  }
}

function where({ page, line }: Block): string {
  return `${page}:${line}`;
}
