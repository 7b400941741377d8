/** What is made of libvirt's answers about checkpoints. */
import { expect, it } from "vitest";
import { deleteCheckpoint, readCheckpoints } from "../../../src/backup/libvirt/checkpoints.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { writeCheckpoint } from "../../../src/backup/libvirt/rpc/wire-objects.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const GET_XML = 412;
const LIST_ALL = 413;
const DELETE = 417;
const LAB = { name: "lab", uuid: UUID };

const xmlOf = (name: string): string =>
  `<domaincheckpoint><name>${name}</name><creationTime>1</creationTime><disks/></domaincheckpoint>`;

it("hundreds of checkpoints of a slow libvirt are read: each has its own time for its answer", async () => {
  const names = Array.from({ length: 24 }, (_, index) => `c${index}`);
  await using server = await ScriptedLibvirt.start({
    [LIST_ALL]: () => {
      const out = new XdrWriter().int(names.length);
      for (const name of names) writeCheckpoint(out, { name, domain: { ...LAB, id: 1 } });
      return out.int(names.length);
    },
    [GET_XML]: (args, call, client) => {
      const xml = xmlOf(args.string());
      setTimeout(() => client.answer(call, new XdrWriter().string(xml)), 200);
      return "silence";
    },
  });
  // All of them take 1.2 s.
  await using libvirt = new Libvirt({ connect: server.uri, timeoutMs: 900 });
  expect((await readCheckpoints(libvirt, LAB)).map(({ name }) => name)).toEqual(names);
});

it("a deletion that libvirt refuses says why, also where it can't be asked for more", async () => {
  await using server = await ScriptedLibvirt.start({
    [DELETE]: () => ({ refuse: 1, message: "interner Fehler: so geht das nicht" }),
    [GET_XML]: () => ({
      refuse: 68,
      message: "Timed out during operation: cannot acquire state change lock",
    }),
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  await expect(deleteCheckpoint(libvirt, LAB, "c1")).rejects.toMatchObject({
    code: "E_LIBVIRT_REFUSED",
    message: expect.stringContaining("so geht das nicht"),
  });
  expect(server.calls).toEqual([DELETE, GET_XML]);
});
