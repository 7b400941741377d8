import { BackupError } from "../base/errors.js";

/** libvirt's information about a domain's job: the running one, or the last one that ended. */
export interface JobInfo {
  /** Whether it runs now. */
  readonly active: boolean;
  readonly type: JobType;
  /** `backup`, `migration`, … or `unknown`; absent without a job. */
  readonly operation?: string | undefined;
  /**
   * Time since the job began, by the hypervisor's clock, exact to the millisecond. A restart of libvirtd
   * resets it to 0.
   */
  readonly elapsedMs?: number | undefined;
  /** Bytes that the job's scratch files occupy, and may occupy. */
  readonly scratchUsed?: number | undefined;
  readonly scratchTotal?: number | undefined;
  /**
   * For a job that ended. A backup that was ended on purpose is a success with the error `Operation
   * canceled`.
   */
  readonly success?: boolean | undefined;
  readonly error?: string | undefined;
}

/** virDomainJobType, by number. */
const JOB_TYPES = ["none", "bounded", "unbounded", "completed", "failed", "cancelled"] as const;
type JobType = (typeof JOB_TYPES)[number];

/** virDomainJobOperation, by number. */
const OPERATIONS = [
  "unknown",
  "start",
  "save",
  "restore",
  "migration-in",
  "migration-out",
  "snapshot",
  "snapshot-revert",
  "dump",
  "backup",
  "snapshot-delete",
];

/**
 * Reads the output of `virsh domjobinfo --rawstats`: libvirt's own numbers and names, one per line.
 *
 *     Job type: 2
 *     operation: 9
 *     time_elapsed: 5104
 *     disk_temp_used: 0
 *
 * @throws {BackupError} `E_VIRSH_OUTPUT`
 */
export function parseJobInfo(output: string): JobInfo {
  const fields = new Map<string, string>();
  for (const line of output.split("\n")) {
    const [, key, value] = /^([^:]+):\s*(.*)$/.exec(line) ?? [];
    if (key !== undefined && value !== undefined) fields.set(key, value.trim());
  }
  const type = JOB_TYPES[numberOf(fields, "Job type") ?? -1];
  if (type === undefined) {
    throw new BackupError("E_VIRSH_OUTPUT", `virsh domjobinfo printed no job type that is known: ${output}`);
  }
  if (type === "none") return { active: false, type };
  const success = fields.get("success");
  return {
    active: type === "bounded" || type === "unbounded",
    type,
    operation: OPERATIONS[numberOf(fields, "operation") ?? 0] ?? "unknown",
    elapsedMs: numberOf(fields, "time_elapsed"),
    scratchUsed: numberOf(fields, "disk_temp_used"),
    scratchTotal: numberOf(fields, "disk_temp_total"),
    success: success === undefined ? undefined : success === "1",
    error: fields.get("errmsg"),
  };
}

function numberOf(fields: ReadonlyMap<string, string>, key: string): number | undefined {
  const value = fields.get(key);
  return value !== undefined && /^\d+$/.test(value) ? Number(value) : undefined;
}
