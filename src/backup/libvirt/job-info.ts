import { BackupError } from "../base/errors.js";
import type { TypedParams } from "./rpc/typed-params.js";

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
 * Reads the answer of `virDomainGetJobStats`: a number of virDomainJobType, and facts such as `operation`,
 * `time_elapsed` (in ms) or `disk_temp_used` (in bytes).
 *
 * @throws {BackupError} `E_LIBVIRT_ANSWER`
 */
export function jobInfoOf(jobType: number, params: TypedParams): JobInfo {
  const type = JOB_TYPES[jobType];
  if (type === undefined) {
    throw new BackupError("E_LIBVIRT_ANSWER", `libvirt named a job of a type that is not known: ${jobType}`);
  }
  if (type === "none") return { active: false, type };
  return {
    active: type === "bounded" || type === "unbounded",
    type,
    ...jobFactsOf(params),
  };
}

/** What libvirt tells about a job that runs or ended. */
export function jobFactsOf(params: TypedParams): Omit<JobInfo, "active" | "type"> {
  const number = (name: string): number | undefined => {
    const value = params.get(name);
    return typeof value === "number" ? value : undefined;
  };
  const success = params.get("success");
  const error = params.get("errmsg");
  return {
    operation: OPERATIONS[number("operation") ?? 0] ?? "unknown",
    elapsedMs: number("time_elapsed"),
    scratchUsed: number("disk_temp_used"),
    scratchTotal: number("disk_temp_total"),
    success: typeof success === "boolean" ? success : undefined,
    error: typeof error === "string" ? error : undefined,
  };
}
