import { PreconditionError } from "../base/errors.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";

/** What becomes of disks that are encrypted on their host: stored with or without a warning, or refused. */
export const ENCRYPTED_POLICIES = ["warn", "refuse", "store"] as const;
export type EncryptedPolicy = (typeof ENCRYPTED_POLICIES)[number];

/**
 * QEMU decrypts a disk for its guest, and a backup reads what the guest reads. So the point holds as plain
 * text what the host keeps encrypted, and so do the job's scratch files.
 *
 * @param names the disks that would be taken
 * @returns those among them that will be stored as plain text
 * @throws {PreconditionError} `E_ENCRYPTED`: there is one, and the policy is `refuse`
 */
export function judgeEncrypted(
  domain: DomainDefinition,
  names: readonly string[],
  { encrypted, onWarning }: EncryptedOptions,
): readonly string[] {
  const found = domain.disks.flatMap(({ isEncrypted, target }) =>
    isEncrypted && names.includes(target) ? [target] : [],
  );
  if (found.length === 0 || encrypted === "store") return found;
  const disks = `${found.join(", ")} of ${domain.name}`;
  const what = `QEMU decrypts ${disks} for the guest, so a backup holds as plain text what is encrypted on the host`;
  if (encrypted === "refuse") {
    throw new PreconditionError(
      "E_ENCRYPTED",
      `${what}, and --encrypted=refuse doesn't allow that: leave such disks out (--exclude), or let them be stored in an encrypted file system (--encrypted=store)`,
      { details: { domain: domain.name, disks: found } },
    );
  }
  onWarning?.(
    `${what}, and so do the job's scratch files: keep both on an encrypted file system, then --encrypted=store says nothing more of it; --encrypted=refuse makes it an error`,
  );
  return found;
}

interface EncryptedOptions {
  /** Default: `warn`. */
  readonly encrypted?: EncryptedPolicy | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}
