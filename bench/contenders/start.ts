import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Node } from "../nodes.js";
import { NBDPULL } from "../paths.js";
import { PROGRAMS } from "../programs.js";
import { withAddress } from "../servers.js";
import { type Contender, onlySource, type Task } from "../workload.js";
import { equalsSource } from "./verify.js";

/** Node by itself. */
export function emptyProgram(node: Node): Contender {
  return {
    name: "node -e 0",
    needs: [],
    command: () => ({ program: node.path, args: ["-e", "0"] }),
    verify: async () => "by its exit code",
  };
}

/** What a command prints before it does anything: to its last byte, which comes with the first. */
export function printed(node: Node, ...args: readonly string[]): Contender {
  return {
    name: args.join(" "),
    needs: [],
    command: (task) => ({
      program: node.path,
      args: [NBDPULL, ...args],
      stdout: join(task.output, "stdout"),
    }),
    verify: async (_, { stdout = "" }) => {
      if (!/^(?:Usage: |\d+\.\d+\.\d+$)/m.test(await readFile(stdout, "utf8")))
        throw new Error("it printed something else");
      return "by its first line";
    },
  };
}

/** A pull that is ended when its first request has left, by a program of ours that passes it on. */
export function firstRequest(node: Node): Contender {
  return {
    name: "pull to its first request",
    needs: [PROGRAMS.cc],
    command: (task) => {
      const { at, exportName } = onlySource(task);
      if (at.kind !== "unix") throw new Error("only Unix sockets are passed on");
      const socket = join(task.output, "front.sock");
      const { uri } = withAddress({ at: { kind: "unix", socket }, exportName });
      const pull = ["pull", uri, join(task.output, "disk.raw"), "--no-fsync", "--quiet"];
      return { program: task.built.untilRequest, args: [socket, at.socket, node.path, NBDPULL, ...pull] };
    },
    verify: async () => "by its request",
  };
}

/** A pull that is done as soon as it has begun. */
export function smallPull(node: Node): Contender {
  const image = (task: Task) => ({ path: join(task.output, "disk.raw"), format: "raw" as const });
  return {
    name: "pull of 64 KiB",
    needs: [],
    command: (task) => ({
      program: node.path,
      args: [NBDPULL, "pull", onlySource(task).uri, image(task).path, "--no-fsync", "--quiet"],
    }),
    verify: equalsSource(image),
  };
}
