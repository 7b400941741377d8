/**
 * The results of backups in Prometheus' text format, for the textfile collector of its node exporter:
 *
 *     # HELP nbdpull_backup_success 1 if the last backup came to its end, else 0.
 *     # TYPE nbdpull_backup_success gauge
 *     nbdpull_backup_success{domain="web",repository="/srv/backups"} 1
 *
 * One file may hold the series of many domains and repositories; an update keeps those of others.
 */

import { UsageError } from "../src/backup/base/errors.js";
import type { BackupResult } from "../src/backup/take/backup.js";

/** All gauges, in base units. */
const METRICS = {
  nbdpull_run_timestamp_seconds: "When the last run of nbdpull backup into the repository ended.",
  nbdpull_run_exit_code: "Its exit code.",
  nbdpull_prune_timestamp_seconds: "When the last nbdpull prune of the repository ended.",
  nbdpull_prune_exit_code: "Its exit code.",
  nbdpull_verify_timestamp_seconds: "When the last nbdpull verify of the repository ended.",
  nbdpull_verify_exit_code:
    "Its exit code; 3: damage was found, or is known of a point that was not its turn.",
  nbdpull_backup_timestamp_seconds: "End of the last backup of the domain, successful or not.",
  nbdpull_backup_success: "1 if the last backup came to its end, else 0.",
  nbdpull_backup_exit_code: "The exit code of the last backup, were it the only one of its run.",
  nbdpull_backup_last_success_timestamp_seconds:
    "Start of the last successful backup; no backup holds what the guest wrote since. 0 if unknown.",
  nbdpull_backup_duration_seconds: "How long the last backup that was a success took.",
  nbdpull_backup_changed_bytes:
    "Bytes of its disks that it took: all of them, or what was changed since their bases.",
  nbdpull_backup_stored_bytes: "Bytes that it stored of its disks.",
  nbdpull_backup_full_disks: "How many of its disks it took in full.",
  nbdpull_points: "Restore points of the domain when it was last backed up.",
  nbdpull_points_unrestorable:
    "How many of them can't be restored, as far as manifests, missing files and earlier verifies tell.",
  nbdpull_report_timestamp_seconds: "When nbdpull report last looked at the repository.",
  nbdpull_report_readable: "1 if it could read the repository and all its domains, else 0.",
  nbdpull_report_max_age_seconds: "How old the last good point of its domains may be.",
  nbdpull_report_last_good_timestamp_seconds:
    "When the newest point of the domain that can be restored was made; 0 if there is none.",
  nbdpull_report_late: "1 if that is longer ago than it may be, else 0.",
  nbdpull_report_points: "Restore points of the domain.",
  nbdpull_report_points_unrestorable: "How many of them can't be restored.",
  nbdpull_report_chain_length: "Images that a restore of its last good point reads of a disk.",
  nbdpull_report_virtual_bytes: "Size of its disks.",
  nbdpull_report_logical_bytes: "What its points would take if each were a full copy of its disks.",
  nbdpull_report_stored_bytes: "What its points take.",
  nbdpull_report_growth_bytes_per_day: "What was stored for each day since the oldest point.",
  nbdpull_report_changed_bytes_per_day: "What was changed on its disks for each day that increments cover.",
  nbdpull_rehearsal_success: "1 if the domain came up at its last rehearsal, else 0.",
  nbdpull_rehearsal_timestamp_seconds: "When that ended.",
} as const;
export type Metric = keyof typeof METRICS;

export interface Sample {
  readonly metric: Metric;
  /** Labels as they are written, without braces. */
  readonly labels: string;
  readonly value: number;
}

/** Series of one subject that replace older ones. */
export interface MetricsUpdate {
  readonly samples: readonly Sample[];
  /** Names of required series, with the value to use if they are missing. */
  readonly otherwise: readonly Sample[];
  /** What else is removed, such as series of domains that are gone. */
  readonly removed?: (old: Sample) => boolean;
}

/** @param points of the domain: whether each can be restored; undefined: not known */
export function updateOfSuccess(
  { manifest, level, seconds }: BackupResult,
  repository: string,
  now: number,
  points?: readonly boolean[],
): MetricsUpdate {
  const labels = labelsOf({ domain: manifest.domain.name, repository });
  const withLevel = `${labels},${labelsOf({ level })}`;
  const total = (of: (disk: (typeof manifest.disks)[number]) => number): number =>
    manifest.disks.reduce((sum, disk) => sum + of(disk), 0);
  return {
    samples: [
      ...endOf(labels, 0, now),
      {
        metric: "nbdpull_backup_last_success_timestamp_seconds",
        labels,
        value: Date.parse(manifest.createdAt) / 1000,
      },
      { metric: "nbdpull_backup_duration_seconds", labels: withLevel, value: seconds },
      { metric: "nbdpull_backup_changed_bytes", labels: withLevel, value: total((disk) => disk.dirtyBytes) },
      { metric: "nbdpull_backup_stored_bytes", labels: withLevel, value: total((disk) => disk.storedBytes) },
      {
        metric: "nbdpull_backup_full_disks",
        labels: withLevel,
        value: total(({ parent }) => (parent === null ? 1 : 0)),
      },
      ...(points === undefined
        ? []
        : [
            { metric: "nbdpull_points" as const, labels, value: points.length },
            {
              metric: "nbdpull_points_unrestorable" as const,
              labels,
              value: points.filter((isRestorable) => !isRestorable).length,
            },
          ]),
    ],
    otherwise: [],
  };
}

/** Series about the last success are kept. */
export function updateOfFailure(
  domain: string,
  repository: string,
  exitCode: number,
  now: number,
): MetricsUpdate {
  const labels = labelsOf({ domain, repository });
  return {
    samples: endOf(labels, exitCode, now),
    otherwise: [{ metric: "nbdpull_backup_last_success_timestamp_seconds", labels, value: 0 }],
  };
}

export function updateOfRehearsal(
  domain: string,
  repository: string,
  cameUp: boolean,
  now: number,
): MetricsUpdate {
  const labels = labelsOf({ domain, repository });
  return {
    samples: [
      { metric: "nbdpull_rehearsal_success", labels, value: cameUp ? 1 : 0 },
      { metric: "nbdpull_rehearsal_timestamp_seconds", labels, value: now / 1000 },
    ],
    otherwise: [],
  };
}

/** Also for a run that failed before it reached a domain. */
export function updateOfRun(repository: string, exitCode: number, now: number): MetricsUpdate {
  const labels = labelsOf({ repository });
  return {
    samples: [
      { metric: "nbdpull_run_timestamp_seconds", labels, value: now / 1000 },
      { metric: "nbdpull_run_exit_code", labels, value: exitCode },
    ],
    otherwise: [],
  };
}

/** Of a job that is about a whole repository. */
export function updateOfJob(
  job: "prune" | "verify",
  repository: string,
  exitCode: number,
  now: number,
): MetricsUpdate {
  const labels = labelsOf({ repository });
  return {
    samples: [
      { metric: `nbdpull_${job}_timestamp_seconds`, labels, value: now / 1000 },
      { metric: `nbdpull_${job}_exit_code`, labels, value: exitCode },
    ],
    otherwise: [],
  };
}

function endOf(labels: string, exitCode: number, now: number): Sample[] {
  return [
    { metric: "nbdpull_backup_timestamp_seconds", labels, value: now / 1000 },
    { metric: "nbdpull_backup_success", labels, value: exitCode === 0 ? 1 : 0 },
    { metric: "nbdpull_backup_exit_code", labels, value: exitCode },
  ];
}

/**
 * Returns the text of the file after an update.
 * @param text the current content; may be empty
 * @throws {UsageError} if the content was not written by this program
 */
export function updatedMetrics(text: string, update: MetricsUpdate, path: string): string {
  const { samples, otherwise, removed = () => false } = update;
  const before = parseMetrics(text, path);
  const isReplaced = (old: Sample): boolean =>
    removed(old) ||
    samples.some(
      ({ metric, labels }) => metric === old.metric && subjectOf(labels) === subjectOf(old.labels),
    );
  const kept = before.filter((old) => !isReplaced(old));
  const missing = otherwise.filter(
    ({ metric, labels }) => !kept.some((old) => old.metric === metric && old.labels === labels),
  );
  return formatMetrics([...kept, ...missing, ...samples]);
}

/** Levels may appear and disappear; all series of a domain in a repository have one subject. */
function subjectOf(labels: string): string {
  return labels.replace(/,level="[a-z]*"$/, "");
}

function formatMetrics(samples: readonly Sample[]): string {
  const lines: string[] = [];
  for (const [metric, help] of Object.entries(METRICS)) {
    const series = samples.filter((sample) => sample.metric === metric).sort(byLabels);
    if (series.length === 0) continue;
    lines.push(`# HELP ${metric} ${help}`, `# TYPE ${metric} gauge`);
    lines.push(...series.map(({ labels, value }) => `${metric}{${labels}} ${value}`));
  }
  return `${lines.join("\n")}\n`;
}

function byLabels(a: Sample, b: Sample): number {
  return a.labels < b.labels ? -1 : 1;
}

function parseMetrics(text: string, path: string): Sample[] {
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return lines.map((line) => {
    const [, metric = "", labels = "", value] = /^(\w+)\{(.*)\} (\S+)$/s.exec(line) ?? [];
    if (isMetric(metric)) return { metric, labels, value: Number(value) };
    const message = `${path} is no metrics file of nbdpull's, since it has the line "${line}": name another one, or remove it`;
    throw new UsageError("E_METRICS", message, { details: { path } });
  });
}

function isMetric(name: string): name is Metric {
  return Object.hasOwn(METRICS, name);
}

export function labelsOf(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([name, value]) => `${name}="${escaped(value)}"`)
    .join(",");
}

function escaped(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
