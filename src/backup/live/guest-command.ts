/** A command that is run in a guest by its agent, which may answer anything, late, or not at all. */
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { hasCode, messageOf } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import type { HeldFolder } from "../host/held-folder.js";
import type { DomainRun } from "../libvirt/domain-run.js";
import { refuseFull } from "./reserve.js";

/** What came of a command. */
export interface CommandRun {
  readonly command: string;
  /** Absent: it did not end, or a signal ended it. */
  readonly exitCode?: number | undefined;
  /** The end of what it wrote to its outputs. */
  readonly output: string;
}

interface CommandOptions {
  readonly run: DomainRun;
  readonly command: string;
  /** Where what the guest writes meanwhile goes. */
  readonly folder: HeldFolder;
  /** When it has to be over, by `performance.now()`. */
  readonly deadline: number;
  readonly signal: AbortSignal | undefined;
}

const LOOK_MS = 500;
/** An agent that takes longer for one answer is asked again. */
const ANSWER_MS = 10_000;
/** The last of a command's output that is kept. */
const KEPT_BYTES = 4096;

const started = z.object({ return: z.object({ pid: z.int() }) });
const status = z.object({
  return: z.object({
    exited: z.boolean(),
    exitcode: z.int().optional(),
    signal: z.int().optional(),
    "out-data": z.string().optional(),
    "err-data": z.string().optional(),
  }),
});
const system = z.object({ return: z.object({ id: z.string().optional() }) });

/** What an agent said that makes no sense. */
class NonsenseError extends Error {}

/**
 * Runs a command by the guest's shell and waits for its end.
 * @returns undefined as `reason` if it ended with exit code 0
 * @throws {PreconditionError} `E_REHEARSAL`: what it writes has used up the room
 * @throws as `Libvirt` does, if that doesn't answer; the signal's reason
 */
export async function runInGuest(
  options: CommandOptions,
): Promise<{ readonly ran: CommandRun; readonly reason: string | undefined }> {
  const { run, command, folder, deadline, signal } = options;
  let ran: CommandRun = { command, output: "" };
  const failed = (reason: string) => ({ ran, reason });
  let pid: number | undefined;
  let last = "its agent did not answer";
  for (;;) {
    signal?.throwIfAborted();
    try {
      if (pid === undefined) {
        const shell = await shellOf(run, deadline);
        const { path, arg } = shell;
        // A second one is never begun: the first may run though its answer was lost.
        last = "its agent did not say whether it began the command";
        const begun = await ask(run, deadline, started, "guest-exec", {
          ...{ path, arg: [...arg, command], "capture-output": true },
        });
        pid = begun.return.pid;
      }
      last = "the command did not end";
      const { return: found } = await ask(run, deadline, status, "guest-exec-status", { pid });
      if (found.exited) {
        const output = `${textOf(found["out-data"])}${textOf(found["err-data"])}`.slice(-KEPT_BYTES);
        ran = { command, exitCode: found.exitcode, output };
        if (found.exitcode === 0) return { ran, reason: undefined };
        if (found.exitcode === undefined) return failed(`signal ${found.signal ?? "?"} ended the command`);
        return failed(`the command ended with exit code ${found.exitcode}`);
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof NonsenseError) return failed(error.message);
      // libvirt calls a domain busy whose agent it still waits for.
      const isSilent = ["E_NO_AGENT", "E_DOMAIN_BUSY"].some((code) => hasCode(error, code));
      if (hasCode(error, "E_DOMAIN_OFF")) return failed("it shut itself off, or died, while the command ran");
      if (hasCode(error, "E_LIBVIRT_REFUSED")) {
        return failed(`its agent did not run the command: ${messageOf(error)}`);
      }
      if (!isSilent) throw error;
      if (last.startsWith("its agent did not say")) return failed(last);
    }
    await refuseFull(folder);
    if (performance.now() >= deadline) return failed(`${last} in time`);
    await sleep(LOOK_MS, undefined, signal && { signal }).catch(() => signal?.throwIfAborted());
  }
}

/** Windows has no sh. An agent that can't tell what it runs on is taken to be another system's. */
async function shellOf(run: DomainRun, deadline: number): Promise<{ path: string; arg: string[] }> {
  let id: string | undefined;
  try {
    id = (await ask(run, deadline, system, "guest-get-osinfo")).return.id;
  } catch (error) {
    if (!hasCode(error, "E_LIBVIRT_REFUSED")) throw error;
  }
  return id === "mswindows" ? { path: "cmd.exe", arg: ["/c"] } : { path: "/bin/sh", arg: ["-c"] };
}

async function ask<T>(
  run: DomainRun,
  deadline: number,
  schema: z.ZodType<T>,
  execute: string,
  args?: object,
): Promise<T> {
  const left = Math.min(Math.max(deadline - performance.now(), 1), ANSWER_MS);
  const command = args === undefined ? { execute } : { execute, arguments: args };
  const { data } = schema.safeParse(parseJson(await run.askAgent(command, left)));
  if (data === undefined)
    throw new NonsenseError(`its agent answered ${execute} with something that makes no sense`);
  return data;
}

function textOf(data: string | undefined): string {
  // The end of base64 can be decoded alone from a multiple of four characters on.
  const most = KEPT_BYTES * 2;
  const cut = data === undefined || data.length <= most ? 0 : Math.ceil((data.length - most) / 4) * 4;
  return Buffer.from((data ?? "").slice(cut), "base64").toString("utf8");
}
