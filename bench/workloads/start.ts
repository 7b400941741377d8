import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { emptyProgram, firstRequest, printed, smallPull } from "../contenders/start.js";
import { makeRaw } from "../images.js";
import { type Node, nodesHere } from "../nodes.js";
import { PROJECT } from "../paths.js";
import type { Target } from "../result.js";
import { serveByQemuNbd } from "../servers.js";
import type { Workload } from "../workload.js";

const KiB = 1024;

/** Each has a file of its own with its usage. */
const COMMANDS = readdirSync(join(PROJECT, "bin", "usage"))
  .filter((name) => name.endsWith(".ts"))
  .map((name) => basename(name, ".ts"));

/** What a person or a script waits for at most, in seconds, with Node 24. */
const SECONDS: readonly Target[] = [
  { contender: "pull --help", metric: "wall", atMost: 0.04 },
  { contender: "backup --help", metric: "wall", atMost: 0.06 },
  { contender: "pull to its first request", metric: "wall", atMost: 0.06 },
];

/** By the version of Node that it is started with, also if that Node is not here. */
export function targetsOfStart(version: string): readonly Target[] {
  return [
    { contender: "pull --help", metric: "wall", against: "node -e 0", atMost: 1.74 },
    { contender: "backup --help", metric: "wall", against: "node -e 0", atMost: 2.6 },
    { contender: "pull to its first request", metric: "wall", against: "node -e 0", atMost: 2.6 },
    ...(version.startsWith("24.") ? SECONDS : []),
  ];
}

/** How long each command takes to start, with each Node that is here. */
export const starts: readonly Workload[] = nodesHere().map((node) => startWith(node));

function startWith(node: Node): Workload {
  return {
    name: `start-node-${node.version}`,
    title: `Starting, with Node ${node.version}`,
    about:
      "From the start of the process to its end, which comes with the first byte: Node by itself, the help of each command, a pull that is ended when its first request leaves, and one of next to nothing by qemu-nbd. After the warm-up, Node has our compiled code from its last run, where it keeps any.",
    reference: "node -e 0",
    contenders: [
      emptyProgram(node),
      printed(node, "--version"),
      printed(node, "--help"),
      ...COMMANDS.map((command) => printed(node, command, "--help")),
      firstRequest(node),
      smallPull(node),
    ],
    targets: targetsOfStart(node.version),
    setUp: async ({ folder }) => {
      const stretches = [{ offset: 0, length: 64 * KiB }];
      const image = await makeRaw(join(folder, "small.raw"), 64 * KiB, stretches);
      return await serveByQemuNbd({ image, virtualSize: 64 * KiB }, { folder });
    },
  };
}
