/** How the disks of a guest would be taken now. */
import { proveChain } from "./chain.js";
import { PreconditionError } from "./errors.js";
import type { Guest } from "./guest-jobs.js";
import type { ImageFormat } from "./image/create.js";
import { type DiskPlan, type GuestDisk, type Level, planDisk } from "./level.js";
import { readCheckpoints } from "./libvirt/checkpoints.js";
import type { Manifest } from "./manifest.js";

export interface PlanOptions {
  readonly level: Level;
  readonly format: ImageFormat;
  /** Bitmaps that can't be used, as `bitmapOf` calls them, and why. */
  readonly broken: ReadonlyMap<string, string>;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

/** Decides for every disk. */
export async function planGuest(
  { virsh, domain, repository }: Guest,
  disks: readonly GuestDisk[],
  options: PlanOptions,
): Promise<DiskPlan[]> {
  const { broken, signal, onWarning } = options;
  const read = async (): Promise<DiskPlan[]> => {
    const history = {
      domainUuid: domain.uuid,
      points: await repository.points(domain.name, ({ message }) => onWarning?.(message)),
      checkpoints: await readCheckpoints(virsh, domain),
      broken,
      prove: (point: Manifest, disk: string) => proveChain(repository, domain.name, point, disk),
    };
    const plans: DiskPlan[] = [];
    for (const disk of disks) plans.push(await planDisk(disk, options, history));
    return plans;
  };
  return await repository.reading(domain.name, read, signal);
}

/**
 * An increment that was asked for by name is never silently a full copy of everything.
 * @throws {PreconditionError} `E_NO_BASE`
 */
export function refuseNoBase(domain: string, plans: readonly DiskPlan[], level: Level): void {
  if (level !== "incremental" && level !== "differential") return;
  if (plans.some(({ base }) => base)) return;
  const reasons = plans.map(({ name, reason = "there is no point yet" }) => `${name}: ${reason}`).join("; ");
  throw new PreconditionError(
    "E_NO_BASE",
    `${domain} has nothing that an ${level} backup could start from (${reasons}). Take a full one first: --level full, or auto`,
    { details: { domain } },
  );
}

/** What was made, beside the level that was asked for. */
export function levelOf(manifest: Manifest, asked: Level): Exclude<Level, "auto"> {
  if (asked === "copy") return "copy";
  if (manifest.level === "full") return "full";
  return asked === "differential" ? "differential" : "incremental";
}
