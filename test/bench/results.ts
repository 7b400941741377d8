import type { BenchResult, ContenderResult, RunResult, WorkloadResult } from "../../bench/result.js";

/** A run that took `wallSeconds`, half of it on the CPU, in 10 MiB. */
export function runOf(wallSeconds: number): RunResult {
  return {
    wallSeconds,
    userSeconds: wallSeconds / 4,
    systemSeconds: wallSeconds / 4,
    serverSeconds: 0.1,
    peakRssKiB: 10 * 1024,
  };
}

export function contenderOf(name: string, ...wallSeconds: readonly number[]): ContenderResult {
  return { name, state: "measured", runs: wallSeconds.map(runOf) };
}

export function workloadOf(
  contenders: readonly ContenderResult[],
  more: Partial<WorkloadResult> = {},
): WorkloadResult {
  return {
    name: "copy",
    title: "A copy",
    about: "Of something.",
    reference: "theirs",
    contenders: [...contenders],
    targets: [],
    ...more,
  };
}

export function resultOf(...workloads: readonly WorkloadResult[]): BenchResult {
  return {
    format: 1,
    startedAt: "2026-11-20T12:00:00.000Z",
    machine: { cpu: "Some CPU", cores: 2, memoryGiB: 8, kernel: "6.1", fileSystem: "tmpfs" },
    versions: { Node: "20.19.0", QEMU: "7.2" },
    settings: { runs: 3, scale: 1 },
    workloads: [...workloads],
  };
}
