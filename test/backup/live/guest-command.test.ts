import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { expect, it } from "vitest";
import { canConnect } from "../../../src/backup/host/can-connect.js";
import { HeldFolder } from "../../../src/backup/host/held-folder.js";
import { DomainRun } from "../../../src/backup/libvirt/domain-run.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { runInGuest } from "../../../src/backup/live/guest-command.js";
import { type Answer, ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

/** Of the program of QEMU's own procedures. */
const AGENT_COMMAND = 3;
const UNRESPONSIVE = 86;

interface Asked {
  readonly execute: string;
  readonly arguments?: { readonly path?: string; readonly arg?: string[]; readonly pid?: number };
}

const said = (answer: unknown): XdrWriter =>
  new XdrWriter().optionalString(typeof answer === "string" ? answer : JSON.stringify({ return: answer }));
const base64 = (text: string): string => Buffer.from(text).toString("base64");

/** Runs a command in a guest whose agent answers so. */
async function running(agent: (asked: Asked) => Answer, withinMs = 5000, place = tmpdir()) {
  await using folder = await HeldFolder.open(place);
  const asked: Asked[] = [];
  await using server = await ScriptedLibvirt.start({
    [AGENT_COMMAND]: (args) => {
      // The domain: its name, its UUID and the number of its run.
      args.string();
      args.fixed(16);
      args.int();
      const command = JSON.parse(args.string()) as Asked;
      asked.push(command);
      return agent(command);
    },
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const run = new DomainRun(libvirt, { name: "web", uuid: UUID });
  const deadline = performance.now() + withinMs;
  return { asked, ...(await runInGuest({ run, command: "check", folder, deadline, signal: undefined })) };
}

/** An agent that does what it is told; the command ends at the second look. */
function honest(end: object, system = "debian"): (asked: Asked) => Answer {
  let looks = 0;
  return ({ execute }) => {
    if (execute === "guest-get-osinfo") return said({ id: system });
    if (execute === "guest-exec") return said({ pid: 7 });
    looks += 1;
    return said(looks === 1 ? { exited: false } : { exited: true, ...end });
  };
}

it("runs a command by the guest's agent, and keeps its exit code and the end of its output", async () => {
  const output = `${"x".repeat(100_000)}the end`;
  const { asked, ran, reason } = await running(
    honest({ exitcode: 0, "out-data": base64(output), "err-data": base64("!") }),
  );
  expect(reason).toBeUndefined();
  expect(ran).toEqual({ command: "check", exitCode: 0, output: `${output}!`.slice(-4096) });
  expect(asked.map(({ execute }) => execute)).toEqual([
    "guest-get-osinfo",
    "guest-exec",
    "guest-exec-status",
    "guest-exec-status",
  ]);
  expect(asked[1]?.arguments).toMatchObject({ path: "/bin/sh", arg: ["-c", "check"] });
  expect(asked[2]?.arguments).toEqual({ pid: 7 });

  const failed = await running(honest({ exitcode: 3 }, "mswindows"));
  expect(failed.reason).toBe("the command ended with exit code 3");
  expect(failed.asked[1]?.arguments).toMatchObject({ path: "cmd.exe", arg: ["/c", "check"] });
  expect((await running(honest({ signal: 9 }))).reason).toBe("signal 9 ended the command");
});

it.each<[string, (asked: Asked) => Answer, RegExp]>([
  ["babbles", () => said("no JSON"), /answered guest-get-osinfo with something that makes no sense/],
  [
    "lies about what it began",
    ({ execute }) => said(execute === "guest-exec" ? { pid: "7" } : {}),
    /makes no sense/,
  ],
  ["answers nothing", () => new XdrWriter().optionalString(undefined), /makes no sense/],
  [
    "is gone when it was to begin it",
    ({ execute }) => (execute === "guest-exec" ? { refuse: UNRESPONSIVE, message: "gone" } : said({})),
    /did not say whether it began/,
  ],
  ["is never there", () => ({ refuse: UNRESPONSIVE, message: "not connected" }), /did not answer in time/],
  [
    "refuses",
    ({ execute }) => (execute === "guest-exec" ? { refuse: 1, message: "disabled" } : said({})),
    /disabled/,
  ],
  [
    "never ends it",
    ({ execute }) => said(execute === "guest-exec-status" ? { exited: false } : { pid: 7 }),
    /the command did not end in time/,
  ],
])("tells of an agent that %s, within its time, and begins nothing twice", async (_what, agent, reason) => {
  const found = await running(agent, 2000);
  expect(found.reason).toMatch(reason);
  expect(found.asked.filter(({ execute }) => execute === "guest-exec").length).toBeLessThan(2);
});

it("ends a command that fills the room of its disks", async () => {
  // There is never room in /proc.
  const endless = running(honest({ exitcode: 0 }), 5000, "/proc");
  await expect(endless).rejects.toMatchObject({
    code: "E_REHEARSAL",
    message: expect.stringMatching(/0 bytes free/),
  });
});

it("takes a port for one that answers when it takes a connection, and not when nobody does in time", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  const where = { host: "127.0.0.1", port, timeoutMs: 5000, signal: undefined };
  expect(await canConnect(where)).toBe(true);
  server.close();
  expect(await canConnect(where)).toBe(false);
  // Nothing answers at an address for documentation, or the network says so.
  expect(await canConnect({ ...where, host: "192.0.2.1", timeoutMs: 100 })).toBe(false);
});
