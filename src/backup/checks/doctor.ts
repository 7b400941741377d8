import { together } from "../base/in-parallel.js";
import type { Level } from "../guest/levels.js";
import { lookAtDisk, versionHere, versionThere } from "../guest/look-at-disk.js";
import { forecast } from "../guest/plan-guest.js";
import { sshTo } from "../guest/ssh-to-hypervisor.js";
import type { ImageFormat } from "../image/image.js";
import { type DiskChoice, disksToBackUp } from "../libvirt/choose-disks.js";
import { parseHostSecurity } from "../libvirt/documents/capabilities-xml.js";
import { parseDomain } from "../libvirt/documents/domain-xml.js";
import { Repository } from "../repository/repository.js";
import { ask, type CheckResult, failedBy, type Subject } from "./check.js";
import { CHECKS, LIBVIRT } from "./list.js";

interface DoctorOptions
  extends Pick<
    Subject,
    | "libvirt"
    | "scratchParent"
    | "repositoryPath"
    | "scratchReserve"
    | "server"
    | "freeze"
    | "encrypted"
    | "signal"
  > {
  /** Name, UUID or the number of its run; undefined: only host and repository are checked. */
  readonly domainName?: string | undefined;
  readonly choice: DiskChoice;
  readonly level: Level;
  readonly format: ImageFormat;
}

/**
 * Finds out one part of the subject that many checks need. If it fails, that is a finding, and the part is
 * absent.
 */
interface Lesson {
  readonly name: string;
  readonly learn: (subject: Subject, options: DoctorOptions) => Promise<Partial<Subject>>;
}

/** In order: each may need the results of those before it. */
const LESSONS: readonly Lesson[] = [
  {
    name: "shell",
    learn: async ({ libvirt, signal }) => ({ ssh: await sshTo(await libvirt.hypervisor(), signal) }),
  },
  {
    name: "host",
    learn: async ({ libvirt }) => ({ security: parseHostSecurity(await libvirt.capabilities()) }),
  },
  {
    name: "domain",
    learn: async ({ libvirt }, { domainName }) =>
      domainName === undefined ? {} : { domain: parseDomain(await libvirt.domainXml(domainName)) },
  },
  {
    name: "disks",
    learn: async ({ libvirt, domain, ssh }, { choice }) => {
      if (!domain) return {};
      const chosen = disksToBackUp(domain, choice);
      const isHere = (await libvirt.remoteHost()) === undefined;
      const readVersion = ssh ? versionThere(ssh) : isHere ? versionHere : undefined;
      return {
        disks: await together(...chosen.map((disk) => lookAtDisk(libvirt, domain, disk, readVersion))),
      };
    },
  },
  {
    name: "next backup",
    learn: async ({ libvirt, domain, disks, repository, signal }, { level, format }) => {
      if (domain?.id === undefined || !disks) return {};
      const guest = { libvirt, domain, ...(repository ? { repository } : {}) };
      return { forecast: await forecast(guest, disks, { level, format, broken: new Map(), signal }) };
    },
  },
];

const REPOSITORY: Lesson = {
  name: "repository",
  learn: async ({ repositoryPath: path, signal }) =>
    path === undefined
      ? {}
      : { repository: await Repository.openIfThere(path, { signal }), isRepositoryUnknown: false },
};

/** Runs all checks and goes on after a failure. The head of check.ts says what checks may change. */
export async function examine(options: DoctorOptions): Promise<readonly CheckResult[]> {
  const { signal } = options;
  const findings: CheckResult[] = [];
  let subject: Subject = options;
  const learn = async ({ name, learn }: Lesson): Promise<void> => {
    signal?.throwIfAborted();
    try {
      subject = { ...subject, ...(await learn(subject, options)) };
    } catch (error) {
      signal?.throwIfAborted();
      findings.push({ check: name, ...failedBy(error, subject) });
    }
  };
  const libvirt = await ask(LIBVIRT, subject);
  findings.push(...libvirt);
  const answers = libvirt.every(({ status }) => status !== "fail");
  // Until it is learned.
  subject = { ...subject, isRepositoryUnknown: true };
  await learn(REPOSITORY);
  if (answers) for (const lesson of LESSONS) await learn(lesson);
  for (const check of CHECKS) {
    if (answers || !check.asksLibvirt) findings.push(...(await ask(check, subject)));
  }
  return findings;
}
