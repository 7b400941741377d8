/** Runs the real NBD clients that test the server, and reports missing ones. */
import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { test } from "vitest";

/** Skips a test by name if a tool is not installed; with CI=true the test runs, and fails. */
export function testWith(...tools: readonly string[]) {
  const missing = tools.filter((tool) => !isInstalled(tool));
  return test.skipIf(missing.length > 0 && process.env["CI"] !== "true");
}

function isInstalled(tool: string): boolean {
  return (process.env["PATH"] ?? "").split(delimiter).some((directory) => {
    try {
      accessSync(join(directory, tool), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

export interface ToolResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a tool to its end, with any exit code; rejects if it can't be started or hangs. */
export function runTool(tool: string, ...args: readonly string[]): Promise<ToolResult> {
  return new Promise((resolve, reject) => {
    execFile(tool, args, { timeout: 30_000, maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) => {
      if (error === null) resolve({ code: 0, stdout, stderr });
      else if (typeof error.code === "number") resolve({ code: error.code, stdout, stderr });
      else reject(error);
    });
  });
}

/** The output of a tool that must succeed. */
export async function outputOf(tool: string, ...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await runTool(tool, ...args);
  if (code !== 0) throw new Error(`${tool} ${args.join(" ")} ended with ${code}: ${stderr}`);
  return stdout;
}

/** A directory that is removed with its content. */
export async function temporaryDirectory(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(tmpdir(), "nbd-server-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}
