/** The end of a job, as libvirt tells it while the job's disks are read. */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { whileJobRuns } from "../../../../src/backup/libvirt/job/job-watch.js";
import { Libvirt } from "../../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../../src/backup/libvirt/rpc/xdr.js";
import { type Client, type Script, ScriptedLibvirt, UUID } from "../../../support/scripted-libvirt.js";

const REGISTER = 316;
const DEREGISTER = 317;
const LIFECYCLE = 318;
const JOB_COMPLETED = 363;
const LAB = { name: "lab", uuid: UUID };

const LISTENING: Script = {
  [REGISTER]: (args) => new XdrWriter().int(args.int()),
  [DEREGISTER]: () => new XdrWriter(),
};

function about(uuid: string): XdrWriter {
  return new XdrWriter()
    .int(0)
    .string("lab")
    .fixed(Buffer.from(uuid.replaceAll("-", ""), "hex"))
    .int(1);
}

function jobEnded(operation: number, message: string, uuid = UUID): XdrWriter {
  const out = about(uuid).int(2).string("operation").int(1).int(operation);
  return out.string("errmsg").int(7).string(message);
}

/** Work that ends with its signal only. */
function forEver(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}

interface Watched {
  readonly server: ScriptedLibvirt;
  readonly outcome: Promise<string>;
  readonly alive: { ended: boolean; asked: number };
}

async function watching(
  check: (watched: Watched) => Promise<void>,
  work: (signal: AbortSignal) => Promise<string> = forEver,
  patienceMs = 5000,
): Promise<void> {
  await using server = await ScriptedLibvirt.start(LISTENING);
  await using libvirt = new Libvirt({ connect: server.uri, patienceMs });
  const alive = { ended: false, asked: 0 };
  const ended = (reason: string): Error => Object.assign(new Error(reason), { code: "E_JOB_ENDED" });
  const assertAlive = async (): Promise<void> => {
    alive.asked += 1;
    if (alive.ended) throw ended("seen by looking");
  };
  const watch = { libvirt, domain: LAB, ended, assertAlive, signal: undefined };
  const outcome = whileJobRuns(watch, work);
  outcome.catch(() => undefined);
  await expect.poll(() => server.calls).toEqual([REGISTER, REGISTER]);
  // It has the answers, too.
  await expect.poll(() => alive.asked).toBe(1);
  await check({ server, outcome, alive });
}

it("stops the work when libvirt tells that the job has ended, and says why", async () => {
  await watching(async ({ server, outcome }) => {
    server.clients[0]?.tell(JOB_COMPLETED, jobEnded(9, "disk: No space left"));
    await expect(outcome).rejects.toThrow("disk: No space left");
    await expect.poll(() => server.calls.slice(2)).toEqual([DEREGISTER, DEREGISTER]);
  });
});

it("stops the work when the domain stops", async () => {
  await watching(async ({ server, outcome }) => {
    server.clients[0]?.tell(LIFECYCLE, about(UUID).int(5).int(2));
    await expect(outcome).rejects.toThrow("the domain has stopped: it crashed");
  });
});

it("lets the work go on after the end of other jobs, of other domains, and of a pause", async () => {
  let done = (_: string): void => undefined;
  const work = (signal: AbortSignal): Promise<string> =>
    Promise.race([forEver(signal), new Promise<string>((resolve) => (done = resolve))]);
  await watching(async ({ server, outcome }) => {
    const other = UUID.replace("8", "9");
    const client = server.clients[0];
    client?.tell(JOB_COMPLETED, jobEnded(5, "a migration"));
    client?.tell(JOB_COMPLETED, jobEnded(9, "of another domain", other));
    client?.tell(LIFECYCLE, about(other).int(5).int(1));
    client?.tell(LIFECYCLE, about(UUID).int(3).int(0));
    setTimeout(() => done("read"), 50);
    expect(await outcome).toBe("read");
  }, work);
});

it("gives libvirt's reason for a failure that comes a moment before it", async () => {
  const fail = async (): Promise<never> => {
    throw Object.assign(new Error("the server hung up"), { code: "NBD_CLOSED_BY_SERVER" });
  };
  await using server = await ScriptedLibvirt.start({
    ...LISTENING,
    [REGISTER]: (args, _call, client) => {
      const event = args.int();
      if (event === 21) setTimeout(() => client.tell(JOB_COMPLETED, jobEnded(9, "cancelled")), 1000);
      return new XdrWriter().int(event);
    },
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const watch = {
    ...{ libvirt, domain: LAB, signal: undefined },
    ended: (reason: string) => new Error(reason),
    assertAlive: async () => undefined,
  };
  await expect(whileJobRuns(watch, fail)).rejects.toThrow("cancelled");
});

it("notices an end that came before it could listen", async () => {
  await using server = await ScriptedLibvirt.start(LISTENING);
  await using libvirt = new Libvirt({ connect: server.uri });
  const ended = Object.assign(new Error("seen by looking"), { code: "E_JOB_ENDED" });
  const watch = {
    ...{ libvirt, domain: LAB, signal: undefined },
    ended: (reason: string) => new Error(reason),
    assertAlive: async () => {
      throw ended;
    },
  };
  await expect(whileJobRuns(watch, forEver)).rejects.toThrow("seen by looking");
});

it("listens again after libvirt was restarted, and looks whether it has missed the end", async () => {
  await watching(async ({ server, outcome, alive }) => {
    await server.down();
    alive.ended = true;
    await server.up();
    await expect(outcome).rejects.toThrow("seen by looking");
    expect(alive.asked).toBe(2);
  });
});

it("listens again after libvirt was away for longer than it is waited for", async () => {
  await watching(
    async ({ server, outcome }) => {
      await server.down();
      await sleep(1500);
      await server.up(LISTENING);
      await expect.poll(() => server.calls.length).toBeGreaterThanOrEqual(4);
      server.clients.at(-1)?.tell(JOB_COMPLETED, jobEnded(9, "cancelled"));
      await expect(outcome).rejects.toThrow("cancelled");
    },
    forEver,
    100,
  );
});

it.each<[string, (client: Client | undefined) => void]>([
  ["talks nonsense", (client) => client?.socket.write(Buffer.alloc(64, 0xff))],
  ["hangs up", (client) => client?.socket.destroy()],
])("lets the work go on, and listens again after a while, if libvirt %s each time", async (_, misbehave) => {
  let registered = 0;
  await using server = await ScriptedLibvirt.start({
    ...LISTENING,
    [REGISTER]: (args, _call, client) => {
      registered += 1;
      if (registered % 2 === 0) setTimeout(() => misbehave(client), 10);
      return new XdrWriter().int(args.int());
    },
  });
  await using libvirt = new Libvirt({ connect: server.uri, patienceMs: 5000 });
  const watch = {
    ...{ libvirt, domain: LAB, signal: undefined },
    ended: (reason: string) => new Error(reason),
    assertAlive: async () => undefined,
  };
  const began = performance.now();
  const work = async (): Promise<string> => {
    await sleep(1300);
    await expect.poll(() => registered).toBeGreaterThanOrEqual(4);
    return "read";
  };
  expect(await whileJobRuns(watch, work)).toBe("read");
  // Twice at first, and twice in half a second.
  expect(registered).toBeLessThanOrEqual(2 + 4 * Math.floor((performance.now() - began) / 1000 + 0.5));
});

it("is not held up by a flood of events", async () => {
  await watching(async ({ server, outcome }) => {
    const client = server.clients[0];
    for (let event = 0; event < 20_000; event += 1) client?.tell(LIFECYCLE, about(UUID).int(4).int(0));
    client?.tell(JOB_COMPLETED, jobEnded(9, "cancelled"));
    await expect(outcome).rejects.toThrow("cancelled");
  });
});
