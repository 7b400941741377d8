/** The end of a job by a libvirt that hangs, loses connections, or reads nothing more. */
import { expect, it, vi } from "vitest";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const CAPABILITIES = 7;
const ABORT = 164;
const JOB_STATS = 298;
const BACKUP_XML = 422;
const LAB = { name: "lab", uuid: UUID };

const running = (): XdrWriter => new XdrWriter().int(2).int(1).string("operation").int(1).int(9);
const described = (): XdrWriter => new XdrWriter().string("<domainbackup mode='pull'/>");

it("a cancelling that was never sent is made again only after another look at whose job runs", async () => {
  let asked = 0;
  await using server = await ScriptedLibvirt.start({
    [CAPABILITIES]: () => {
      asked += 1;
      return "silence";
    },
    [JOB_STATS]: running,
    [BACKUP_XML]: described,
    [ABORT]: () => new XdrWriter(),
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const stop = new AbortController();
  const stuck = Array.from({ length: 4 }, () => libvirt.withSignal(stop.signal).capabilities());
  const given = Promise.allSettled(stuck);
  await expect.poll(() => asked).toBe(4);
  stop.abort(new Error("enough"));
  await given;
  // The daemon owes the four answers for too long by now, so its connection is given up when it is next needed.
  const now = performance.now.bind(performance);
  const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + 10_000);
  try {
    // Ours has ended meanwhile, and another program has begun the next one.
    await libvirt.abortJob(LAB, { isKnown: true, isOurs: () => false });
  } finally {
    clock.mockRestore();
  }
  expect(server.calls.filter((call) => call !== CAPABILITIES)).toEqual([JOB_STATS, BACKUP_XML]);
  expect(server.clients).toHaveLength(2);
});
