import type { NbdClient } from "../../nbd/index.js";
import { openPatiently } from "../export/open-patiently.js";
import { Outages } from "../export/outages.js";
import { patientBy } from "../guest/job-connection.js";
import { exportedDisks } from "../libvirt/documents/job-xml.js";
import { clientsMustStay } from "../libvirt/fragile-disks.js";
import { type LookOptions, lookAtFrozen } from "./frozen-domain.js";

/**
 * Runs `work` with all disks of a running domain as they are at one moment, each an NBD client by the disk's
 * name. It begins a backup job for that, without a checkpoint, and ends it afterwards.
 *
 * @throws as {@link lookAtFrozen}
 */
export async function withLivingDisks<T>(
  options: LookOptions,
  work: (disks: ReadonlyMap<string, NbdClient>, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return await lookAtFrozen(options, "full", async (frozen) => {
    const { guest, begun, connection, clients, reconnect, signal } = frozen;
    // The disconnect of a client ends a guest with an iothread, if the job still runs.
    const opened = clientsMustStay(guest.domain) ? clients.all : undefined;
    const disks = new Map<string, NbdClient>();
    for (const { name, exportName } of exportedDisks(begun.job.job)) {
      const opening = { ...patientBy(connection, { reconnect }), signal };
      const outages = new Outages(() => undefined);
      const opens = openPatiently(connection.addressOf(exportName), undefined, opening, { outages, opened });
      clients.isOpening(opens);
      const client = await opens;
      if (opened === undefined) clients.all.push(client);
      disks.set(name, client);
    }
    return await work(disks, signal);
  });
}
