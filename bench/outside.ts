import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { LibvirtRelay } from "./libvirt-relay.js";
import { findProgram } from "./programs.js";
import type { Outside } from "./result.js";
import type { Command, Contender, Guest, Task } from "./workload.js";

/** Of all threads and children. The kernel picks the one call out, so that the others take no longer. */
const TRACE = ["-f", "-qq", "--seccomp-bpf", "-e", "trace=execve"] as const;

/**
 * Runs a contender once, between a relay that counts its calls to libvirt and an strace that counts the
 * programs that are started. Both cost time, so this run is not timed.
 *
 * @param folder for the socket and what strace says
 * @throws an error with the end of the command's output if it fails
 */
export async function countOutside(
  contender: Contender,
  task: Task,
  folder: string,
  timeoutMs: number,
): Promise<{ readonly command: Command; readonly outside: Outside }> {
  await using relay = await LibvirtRelay.listen(join(folder, "libvirt.sock"));
  const through = (guest: Guest): Guest => ({ ...guest, uri: relay.uri });
  const command = await contender.command({
    ...task,
    ...(task.guest && { guest: through(task.guest) }),
    ...(task.guests && { guests: task.guests.map(through) }),
  });
  // What had to be made before, as the full backup under an increment, went through the relay too.
  const before = relay.asked;
  const said = join(folder, "started");
  const strace = findProgram("strace");
  const counter = strace === undefined ? [] : [strace, ...TRACE, "-o", said];
  const [first = "", ...rest] = [...counter, command.program, ...command.args];
  await execa(first, rest, { timeout: timeoutMs, killSignal: "SIGKILL" });
  const { calls, connections } = relay.asked;
  const counted = {
    libvirtCalls: calls - before.calls,
    libvirtConnections: connections - before.connections,
    ...(task.guests && { jobs: task.guests.length }),
  };
  if (strace === undefined) return { command, outside: counted };
  const started = await readFile(said, "utf8");
  await rm(said);
  return { command, outside: { ...counted, processes: startedIn(started) } };
}

/**
 * The programs that were started, in what strace says of `execve`: one that is looked for in several folders
 * is tried in vain before.
 *
 *     7424  execve("/usr/bin/node", ["node", …], 0x7ffd… /* 35 vars *\/) = 0
 *     7480  execve("/usr/bin/touch", ["touch", …], 0x2af… /* 35 vars *\/ <unfinished ...>
 *     7480  <... execve resumed>)             = 0
 */
export function startedIn(said: string): number {
  return said.match(/^\d+ +(?:execve\(|<\.\.\. execve resumed>).* = 0$/gm)?.length ?? 0;
}
