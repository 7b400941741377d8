/** What a night takes: backup, prune, verify, report. A step that fails keeps no later one from being done. */
import { UsageError } from "../../src/backup/base/errors.js";
import { EXIT, exitCodeOf, InterruptedError, throwIfInterrupted, worstOf } from "../exit-codes.js";
import type { MaxAgeOptions } from "../max-age.js";
import type { Output } from "../output.js";
import type { RetentionOptions } from "../retention-options.js";
import type { Context } from "../run.js";
import { type BackupOptions, runBackup } from "./backup.js";
import { type PrunedDomain, runPrune } from "./prune.js";
import { runReport } from "./report.js";
import { runVerify } from "./verify.js";

interface RunOptions extends Omit<BackupOptions, "create">, RetentionOptions, MaxAgeOptions {
  readonly verifyShare?: number;
  /** The file for the page. */
  readonly report?: string;
  /** As the configuration file names them. */
  readonly domains?: readonly string[];
  readonly strict?: true;
}

interface Step {
  readonly name: string;
  readonly work: (context: Context) => Promise<void>;
}

/** The exit code is the worst of the steps'. */
export async function runAll(context: Context, options: RunOptions, named: readonly string[]): Promise<void> {
  const { output, signal } = context;
  const domains = named.length > 0 ? named : (options.domains ?? []);
  if (!options.all && domains.length === 0) {
    const message =
      'which domains? domains = ["web", "db"] or all = true in the configuration file, or name them';
    throw new UsageError("E_DOMAIN", message);
  }
  const results: Record<string, unknown> = {};
  const codes: number[] = [];
  const refused = await refusedReport(options);
  if (refused !== undefined) {
    results["report"] = { error: output.fault("report", refused) };
    codes.push(exitCodeOf(refused));
  }
  const steps = stepsOf(refused === undefined ? options : withoutReport(options), domains, results);
  for (const [index, { name, work }] of steps.entries()) {
    const done = steps.slice(0, index).map((step) => step.name);
    throwIfInterrupted(signal, done);
    process.exitCode = undefined;
    try {
      await work({ output: stepOf(output, name, results), signal });
      codes.push(Number(process.exitCode ?? EXIT.done));
    } catch (error) {
      if (error instanceof InterruptedError) throw error;
      throwIfInterrupted(signal, done);
      results[name] = { error: output.fault(name, error) };
      codes.push(exitCodeOf(error));
    }
  }
  if (options.strict && output.warnings.length > 0) codes.push(EXIT.warnings);
  const worst = worstOf(codes);
  if (output.json) output.result({ ...results, exitCode: worst, warnings: output.warnings }, []);
  process.exitCode = worst === EXIT.done ? undefined : worst;
}

/**
 * Why the report can't be written, which is told before the work begins rather than after hours of it. A
 * night without its page is better than one without its backup, so the other steps are done.
 */
async function refusedReport({ report }: RunOptions): Promise<unknown> {
  if (report === undefined) return undefined;
  try {
    const { ReportFile } = await import("../report-file.js");
    await ReportFile.at(report);
    return undefined;
  } catch (error) {
    return error;
  }
}

function withoutReport({ report: _, ...others }: RunOptions): RunOptions {
  return others;
}

function stepsOf(options: RunOptions, domains: readonly string[], results: Record<string, unknown>): Step[] {
  const {
    to,
    keepLast,
    keepDaily,
    keepWeekly,
    keepMonthly,
    verifyShare: share,
    report: html,
    maxAge,
    metrics,
    fsync,
    trustRepository,
    strict,
  } = options;
  const rules = { keepLast, keepDaily, keepWeekly, keepMonthly };
  const given = Object.fromEntries(
    Object.entries({ metrics, trustRepository, strict }).filter(([, value]) => value !== undefined),
  );
  const steps: Step[] = [{ name: "backup", work: (context) => runBackup(context, options, domains) }];
  if (Object.values(rules).some((rule) => rule !== undefined)) {
    // Only what was backed up just now: a repository may have domains of other hosts, which keep what they
    // want.
    const work = async (context: Context): Promise<void> => {
      const only = backedUp(results["backup"]);
      if (only.length > 0) return await runPrune(context, { ...given, ...rules, fsync, only }, to, undefined);
      context.output.result({ domains: [] }, ["no domain has a new point, so none is pruned"]);
    };
    steps.push({ name: "prune", work });
  }
  if (share !== undefined) {
    steps.push({ name: "verify", work: (context) => runVerify(context, { ...given, share }, to, undefined) });
  }
  if (html !== undefined) {
    const prometheus = metrics === undefined ? {} : { prometheus: metrics };
    steps.push({
      name: "report",
      work: (context) => runReport(context, { html, maxAge, ...prometheus }, [to]),
    });
  }
  return steps;
}

/** The domains of which there is a new point. */
function backedUp(result: unknown): PrunedDomain[] {
  const { domains = [result] } = (result ?? {}) as { readonly domains?: readonly unknown[] };
  return domains.flatMap((entry) => {
    const { id, domain, uuid } = (entry ?? {}) as Readonly<Record<string, unknown>>;
    if (typeof id !== "string" || typeof domain !== "string") return [];
    return [{ domain, uuid: typeof uuid === "string" ? uuid : undefined }];
  });
}

function stepOf(output: Output, name: string, results: Record<string, unknown>): Output {
  return output.step((value) => {
    results[name] = value;
  });
}
