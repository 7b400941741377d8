/** The result file: all that was measured, nothing that can be computed from it. `--json` writes it. */

import { z } from "zod";

const seconds = z.number().nonnegative();

const runSchema = z.object({
  wallSeconds: seconds,
  userSeconds: seconds,
  systemSeconds: seconds,
  /** User and system time of the server meanwhile. The kernel tells it in hundredths of a second. */
  serverSeconds: seconds,
  /** Of the largest process, where a contender is several. */
  peakRssKiB: z.number().nonnegative(),
  /** The median time of a read, where a contender reads one after the other and tells it. */
  readMs: z.number().nonnegative().optional(),
});

/** What a client asks for, from one run through the counting relay. */
const trafficSchema = z.object({
  connections: z.number(),
  options: z.number(),
  reads: z.number(),
  readBytes: z.number(),
  blockStatus: z.number(),
  others: z.number(),
  /** Times that the client had said all that it could, and waited. */
  roundTrips: z.number(),
});

/** What a client of libvirt does outside of itself, from one run that isn't timed. */
const outsideSchema = z.object({
  /** Calls to libvirt over its own protocol, with those that open a connection. */
  libvirtCalls: z.number(),
  libvirtConnections: z.number(),
  /** Programs that it started, itself among them. Left out where no strace is installed. */
  processes: z.number().optional(),
  /** Backups that one run makes, if there are several. */
  jobs: z.number().optional(),
});

const contenderSchema = z.object({
  name: z.string(),
  /** "missing": not installed; "failed": it can't do the work, or did it wrong. `reason` says more. */
  state: z.enum(["measured", "missing", "failed"]),
  reason: z.string().optional(),
  command: z.string().optional(),
  /** How the result of the warm-up run was judged. */
  verified: z.string().optional(),
  /** In the order of the rounds; the warm-up is not among them. */
  runs: z.array(runSchema),
  traffic: trafficSchema.optional(),
  outside: outsideSchema.optional(),
});

const targetSchema = z.object({
  contender: z.string(),
  /** "rss" is a bound on every run in MiB, "read" one in ms; the others are ratios to `against`. */
  metric: z.enum(["wall", "cpu", "rss", "read"]),
  /** Left out: the bound is absolute, in seconds for "wall" and "cpu". */
  against: z.string().optional(),
  atMost: z.number(),
});

const workloadSchema = z.object({
  name: z.string(),
  title: z.string(),
  about: z.string(),
  /** What ratios are taken against. */
  reference: z.string(),
  contenders: z.array(contenderSchema),
  targets: z.array(targetSchema),
  /** Where the time limit left room for fewer than were asked for; 0: not for one. */
  rounds: z.number().optional(),
});

export const resultSchema = z.object({
  format: z.literal(1),
  startedAt: z.string(),
  /** Of the last of several runs that were put together. */
  lastStartedAt: z.string().optional(),
  machine: z.object({
    cpu: z.string(),
    cores: z.number(),
    memoryGiB: z.number(),
    kernel: z.string(),
    /** The file system that all inputs and outputs were on. */
    fileSystem: z.string(),
  }),
  /** By the name of the program. Left out: what is not installed. */
  versions: z.record(z.string(), z.string()),
  settings: z.object({
    runs: z.number(),
    scale: z.number(),
    /** Whether QEMU's servers had answered one large read before each run. */
    usedServers: z.boolean().optional(),
  }),
  workloads: z.array(workloadSchema),
});

export type RunResult = z.infer<typeof runSchema>;
export type Traffic = z.infer<typeof trafficSchema>;
export type Outside = z.infer<typeof outsideSchema>;
export type ContenderResult = z.infer<typeof contenderSchema>;
export type Target = z.infer<typeof targetSchema>;
export type WorkloadResult = z.infer<typeof workloadSchema>;
export type BenchResult = z.infer<typeof resultSchema>;

export const METRICS = {
  wall: (run: RunResult): number => run.wallSeconds,
  cpu: (run: RunResult): number => run.userSeconds + run.systemSeconds,
  server: (run: RunResult): number => run.serverSeconds,
  rss: (run: RunResult): number => run.peakRssKiB / 1024,
  read: (run: RunResult): number => run.readMs ?? Number.NaN,
} as const;

export type Metric = keyof typeof METRICS;

export function valuesOf(contender: ContenderResult, metric: Metric): number[] {
  return contender.runs.map(METRICS[metric]);
}
