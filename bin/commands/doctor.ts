import { BackupError, UsageError } from "../../src/backup/base/errors.js";
import type { CheckResult, CheckStatus } from "../../src/backup/checks/check.js";
import { examine } from "../../src/backup/checks/doctor.js";
import { retireRepository } from "../../src/backup/guest/retire-repository.js";
import { Libvirt } from "../../src/backup/libvirt/libvirt.js";
import { Repository } from "../../src/backup/repository/repository.js";
import { EXIT } from "../exit-codes.js";
import { freezeOf } from "../freeze-choice.js";
import { disksOf, type GuestOptions } from "../guest-options.js";
import { tcpServerOf } from "../job-server.js";
import type { TalkOptions } from "../options.js";
import type { Context } from "../run.js";
import { counted } from "../sizes.js";
import type { Line } from "../terminal.js";

interface DoctorOptions extends GuestOptions {
  readonly to?: string;
  readonly retire?: string;
  readonly dryRun?: boolean;
}

export async function runDoctor(
  context: Context,
  options: DoctorOptions & TalkOptions,
  domainName: string | undefined,
): Promise<void> {
  const { output, signal } = context;
  if (options.retire !== undefined) return await retire(context, options, options.retire, domainName);
  if (options.dryRun) throw new UsageError("E_REPOSITORY_ID", "--dry-run is for --retire ID");
  const libvirt = new Libvirt({ signal, connect: options.connect });
  const freeze =
    domainName === undefined ? undefined : await freezeOf(libvirt, domainName, options, () => undefined);
  const findings = await examine({
    libvirt,
    domainName,
    repositoryPath: options.to,
    scratchParent: options.scratch,
    scratchReserve: options.scratchReserve,
    server: tcpServerOf(options),
    freeze,
    choice: disksOf(options),
    encrypted: options.encrypted,
    level: options.level,
    format: "qcow2",
    signal,
  });
  output.result(findings.map(asJson), asText(findings));
  const has = (wanted: CheckStatus): boolean => findings.some(({ status }) => status === wanted);
  if (has("fail")) process.exitCode = EXIT.precondition;
  else if (options.strict && has("warn")) process.exitCode = EXIT.warnings;
}

async function retire(
  { output, signal }: Context,
  { to, connect, dryRun = false }: DoctorOptions,
  repositoryId: string,
  domainName: string | undefined,
): Promise<void> {
  const libvirt = new Libvirt({ signal, connect });
  const alive = to === undefined ? undefined : await Repository.openIfThere(to, { signal });
  const onWarning = (message: string): void => output.warn(message);
  const domains = await retireRepository({
    ...{ libvirt, domainName, repositoryId, alive, dryRun, signal, onWarning },
  });
  for (const message of domains.flatMap(({ failed }) => failed)) output.warn(message);
  const verb = dryRun ? "would delete" : "deleted";
  const lines = domains
    .filter(({ checkpoints }) => checkpoints.length > 0)
    .flatMap(({ domain, checkpoints }) => [
      `${domain}: ${verb} ${counted(checkpoints.length, "checkpoint")}`,
      ...checkpoints.map((name) => `    ${name}`),
    ]);
  const none = `no checkpoint of repository ${repositoryId}`;
  output.result({ repositoryId, dryRun, domains }, lines.length > 0 ? lines : [none]);
  if (domains.some(({ failed }) => failed.length > 0)) process.exitCode = EXIT.failed;
}

function asJson({ check, status, cause, mend, error }: CheckResult): object {
  return {
    check,
    status,
    cause,
    ...(mend === undefined ? {} : { mend }),
    ...(error instanceof BackupError ? { code: error.code } : {}),
  };
}

function asText(findings: readonly CheckResult[]): Line[] {
  const width = Math.max(...findings.map(({ check }) => check.length));
  return findings.flatMap(({ check, status, cause, mend }): Line[] => {
    const line = [{ text: status, colour: COLOURS[status] }, `  ${check.padEnd(width)}  ${cause}`];
    return mend === undefined ? [line] : [line, `${" ".repeat(width + 8)}mend: ${mend}`];
  });
}

const COLOURS = { pass: "green", warn: "yellow", fail: "red" } as const;
