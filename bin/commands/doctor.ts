import type { Command } from "commander";
import { BackupError } from "../../src/backup/base/errors.js";
import type { CheckResult, CheckStatus } from "../../src/backup/checks/check.js";
import { examine } from "../../src/backup/checks/doctor.js";
import { Virsh } from "../../src/backup/libvirt/virsh.js";
import { EXIT } from "../exit-codes.js";
import { disksOf, type GuestOptions, mountpointsOf, withGuest } from "../guest-options.js";
import { tcpServerOf } from "../job-server.js";
import type { Run } from "../run.js";
import type { Line } from "../terminal.js";

interface DoctorOptions extends GuestOptions {
  readonly to?: string;
}

export function addDoctor(program: Command, run: Run): void {
  const command = program
    .command("doctor")
    .description("what stands in the way of a backup, each with the command that mends it; changes nothing")
    .argument("[domain]", "what a backup of it would rest on; left out: only the host and the repository")
    .option("--to <repo>", "the repository that it would go to");
  withGuest(command).action(
    run<DoctorOptions, [domain: string | undefined]>(async ({ output, signal }, options, domainName) => {
      const findings = await examine({
        virsh: new Virsh({ signal, connect: options.connect }),
        domainName,
        repositoryPath: options.to,
        scratchParent: options.scratch,
        scratchReserve: options.scratchReserve,
        server: tcpServerOf(options),
        freeze: mountpointsOf(options),
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
    }),
  );
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
