import { expect, it } from "vitest";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { StartWatch } from "../../../src/backup/libvirt/start-watch.js";
import { ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const REGISTER = 316;
const LIFECYCLE = 318;
const LAB = { name: "lab", uuid: UUID };

it("a watch hears of a start, and knows when it can hear nothing more", async () => {
  await using server = await ScriptedLibvirt.start({ [REGISTER]: () => new XdrWriter().int(1) });
  await using libvirt = new Libvirt({ connect: server.uri });
  await using watch = await StartWatch.of(libvirt, LAB);
  expect([watch.started.aborted, watch.isDeaf]).toEqual([false, false]);
  const uuid = Buffer.from(UUID.replaceAll("-", ""), "hex");
  const start = new XdrWriter().int(1).string("lab").fixed(uuid).int(1).int(2).int(0);
  server.clients[0]?.tell(LIFECYCLE, start);
  await expect.poll(() => watch.started.aborted).toBe(true);
  await server.down();
  await server.up();
  await expect.poll(() => watch.isDeaf).toBe(true);
  // Another connection tells this one nothing.
  expect(await libvirt.domainName("lab")).toBe("lab");
  expect(watch.isDeaf).toBe(true);
});
