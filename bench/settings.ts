/** The command line of the harness. */

import { parseArgs } from "node:util";
import type { Workload } from "./workload.js";
import { WORKLOADS } from "./workloads/index.js";

export const HELP = `npm run bench -- [OPTION...]

The same work by nbdpull and by its peers, side by side in one run. See bench/README.md.

  --list                      what there is: workloads, and their contenders
  --only PATTERN[,...]        workloads with one of these in their names
  --contenders PATTERN[,...]  contenders with one of these in their names
  --runs N                    measured rounds, after a warm-up (default 7)
  --minutes M                 what a workload may take, with its inputs and warm-up: rounds that don't fit are left
                              out, and the table says so; a command that takes as long has failed (default 10)
  --scale S                   sizes and numbers of extents times S, above 0 and at most 1 (default 1)
  --node PATH                 the Node that runs nbdpull, and the harness itself (default: the one that runs npm)
  --json FILE                 also write all figures into a file
  --help                      this
`;

export interface Settings {
  readonly workloads: readonly Workload[];
  readonly takesPart: (contender: string) => boolean;
  readonly runs: number;
  /** For one workload, with its inputs and the warm-up. */
  readonly limitMs: number;
  readonly scale: number;
  readonly json: string | undefined;
}

/** Something else than a run: the help, the list, or the same by another Node. */
export type Instead = "help" | "list" | { readonly node: string; readonly args: readonly string[] };

/** @throws {Error} an option is unknown, or its value makes no sense */
export function settingsOf(args: readonly string[]): Settings | Instead {
  const { values, tokens } = parseArgs({
    args: [...args],
    tokens: true,
    options: {
      only: { type: "string" },
      contenders: { type: "string" },
      runs: { type: "string", default: "7" },
      minutes: { type: "string", default: "10" },
      scale: { type: "string", default: "1" },
      node: { type: "string" },
      json: { type: "string" },
      list: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return "help";
  if (values.node !== undefined) {
    const given = tokens.flatMap((token) =>
      token.kind === "option" && token.name !== "node" ? [token] : [],
    );
    const others = given.map(({ name, value }) => (value === undefined ? `--${name}` : `--${name}=${value}`));
    return { node: values.node, args: others };
  }
  if (values.list) return "list";
  const [runs, scale, minutes] = [Number(values.runs), Number(values.scale), Number(values.minutes)];
  if (!Number.isInteger(runs) || runs < 1) throw new Error("--runs takes a number from 1 on");
  if (!(scale > 0 && scale <= 1)) throw new Error("--scale takes a number above 0, at most 1");
  if (!(minutes > 0 && minutes <= 1440)) throw new Error("--minutes takes a number above 0");
  const workloads = WORKLOADS.filter(({ name }) => matches(name, values.only));
  if (workloads.length === 0) throw new Error(`no workload is called ${values.only}: see --list`);
  return {
    workloads,
    takesPart: (contender) => matches(contender, values.contenders),
    runs,
    limitMs: minutes * 60_000,
    scale,
    json: values.json,
  };
}

/** Whether a name has one of the patterns in it. */
function matches(name: string, patterns: string | undefined): boolean {
  return patterns === undefined || patterns.split(",").some((pattern) => name.includes(pattern));
}
