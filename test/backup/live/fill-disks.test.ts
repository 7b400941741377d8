import { expect, it } from "vitest";
import type { DomainRun } from "../../../src/backup/libvirt/domain-run.js";
import { type FillEvent, fillDisks } from "../../../src/backup/live/fill-disks.js";

it("fills the other disks though one fails again and again", async () => {
  const filled = new Set<string>();
  let ring = (): void => undefined;
  const end = new AbortController();
  // Only what is asked of it. No libvirt has one damaged cluster at will.
  const run = {
    watch: async (wake: () => void) => {
      ring = wake;
      return { [Symbol.asyncDispose]: async () => undefined };
    },
    state: async () => "runs",
    standsAlone: async (disk: string) => filled.has(disk),
    filling: async () => undefined,
    fill: async (disk: string) => {
      ring();
      if (disk === "vda") throw new Error("damaged");
      filled.add(disk);
    },
  } as unknown as DomainRun;
  const events: FillEvent[] = [];
  const onEvent = (event: FillEvent): void => {
    events.push(event);
    if (event.type === "filled" && event.disk === "vdc") end.abort(new Error("enough"));
  };
  const disks = ["vda", "vdb", "vdc"].map((disk) => ({ disk, image: `/${disk}.qcow2` }));
  const options = { run, name: "web", disks, socket: "/none", rate: undefined, signal: end.signal, onEvent };
  await expect(fillDisks(options)).rejects.toThrow("enough");
  expect(events.flatMap((event) => (event.type === "filled" ? event.disk : []))).toEqual(["vdb", "vdc"]);
});
