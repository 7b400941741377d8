/** The end of a job by a libvirt that hangs, loses connections, or reads nothing more. */
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it, vi } from "vitest";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { XdrWriter } from "../../../src/backup/libvirt/rpc/xdr.js";
import { type Script, ScriptedLibvirt, UUID } from "../../support/scripted-libvirt.js";

const CAPABILITIES = 7;
const AUTH_LIST = 66;
const ABORT = 164;
const JOB_STATS = 298;
const BACKUP_XML = 422;
const LAB = { name: "lab", uuid: UUID };

const NO_BACKUP = { refuse: 104, message: "Domain backup job id not found: no domain backup job present" };
const none = (): XdrWriter => new XdrWriter().int(0).int(0);
const running = (): XdrWriter => new XdrWriter().int(2).int(1).string("operation").int(1).int(9);
const described = (): XdrWriter => new XdrWriter().string("<domainbackup mode='pull'/>");

/** A job that runs until it is cancelled. */
function untilCancelled(): { readonly script: Script; readonly cancelled: () => number } {
  let cancelled = 0;
  const script: Script = {
    [JOB_STATS]: () => (cancelled > 0 ? none() : running()),
    [BACKUP_XML]: () => (cancelled > 0 ? NO_BACKUP : described()),
    [ABORT]: () => {
      cancelled += 1;
      return new XdrWriter();
    },
  };
  return { script, cancelled: () => cancelled };
}

it.each([
  ["the job is looked at", JOB_STATS, { isKnown: false }],
  ["it is cancelled", ABORT, { isKnown: true }],
])(
  "a daemon that hangs when %s, and takes connections all the same, is waited for",
  async (_, call, options) => {
    const job = untilCancelled();
    await using server = await ScriptedLibvirt.start(job.script);
    let openings = 0;
    // As one that is stopped (SIGSTOP): its connection is lost, and the next ones wait in the kernel's backlog.
    server.say({
      ...job.script,
      [call]: () => {
        server.say({
          [AUTH_LIST]: () => {
            openings += 1;
            return "silence";
          },
        });
        return "hang up";
      },
    });
    await using libvirt = new Libvirt({ connect: server.uri, timeoutMs: 200 });
    const ending = libvirt.withPatience(30_000).abortJob(LAB, options);
    const ended = expect(ending).resolves.toBeUndefined();
    await expect.poll(() => openings).toBeGreaterThan(1);
    server.say(job.script);
    await ended;
    expect(job.cancelled()).toBe(1);
  },
);

it("a daemon that answers nothing for longer than it is waited for is asked again", async () => {
  const job = untilCancelled();
  await using server = await ScriptedLibvirt.start();
  const silence = (): "silence" => "silence";
  server.say({ [JOB_STATS]: silence, [BACKUP_XML]: silence, [ABORT]: silence });
  await using libvirt = new Libvirt({ connect: server.uri, timeoutMs: 100 });
  const ended = expect(libvirt.abortJob(LAB, { isKnown: true })).resolves.toBeUndefined();
  await expect.poll(() => server.calls.filter((call) => call === JOB_STATS).length).toBeGreaterThan(0);
  server.say(job.script);
  await ended;
  expect(job.cancelled()).toBe(1);
});

it.each([
  ["it hangs", "E_LIBVIRT_TIMEOUT", () => "silence" as const],
  ["it is away", "E_LIBVIRT", () => "hang up" as const],
])("but no longer than a libvirt may be away: %s", async (_, code, say) => {
  await using server = await ScriptedLibvirt.start({ [AUTH_LIST]: say });
  await using libvirt = new Libvirt({ connect: server.uri, timeoutMs: 50 });
  // Nothing was cancelled: the error says what libvirt does.
  await expect(libvirt.withPatience(300).abortJob(LAB)).rejects.toMatchObject({ code });
});

it("a wait is told while a look hangs, and not as that for a job that was cancelled", async () => {
  await using server = await ScriptedLibvirt.start({ [AUTH_LIST]: () => "silence" });
  await using libvirt = new Libvirt({ connect: server.uri, timeoutMs: 1500 });
  const told: string[] = [];
  const patience = { awayMs: 100, tellMs: 100 };
  const ending = libvirt.abortJob(LAB, { patience, onWait: (message) => told.push(message) });
  const failed = expect(ending).rejects.toMatchObject({ code: "E_LIBVIRT_TIMEOUT" });
  await expect.poll(() => told).toHaveLength(1);
  await failed;
  expect(told).toEqual(["libvirt is busy with lab, or away: its backup job is ended as soon as it answers"]);
});

/** A job that QEMU works on, and whose description says nothing new. */
const working = (): XdrWriter =>
  new XdrWriter().int(2).int(2).string("disk_temp_used").int(2).int(7).string("operation").int(1).int(9);
const BUSY = { refuse: 68, message: "Timed out during operation: cannot acquire state change lock" };
/** A job that stands still for longer than this is stuck, and libvirt takes longer to answer. */
const STILL = { stillMs: 300, libvirtMs: 60_000 };
const SLOW_MS = 700;

it("time in which libvirt hung in a look is none in which the job stood still", async () => {
  let looks = 0;
  const cancelled: number[] = [];
  await using server = await ScriptedLibvirt.start({
    [JOB_STATS]: async () => {
      looks += 1;
      if (looks === 3 || looks === 4) await sleep(SLOW_MS);
      return looks > 4 ? none() : working();
    },
    [BACKUP_XML]: () => (looks > 4 ? NO_BACKUP : described()),
    [ABORT]: () => new XdrWriter(),
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const onCancelled = (): void => void cancelled.push(looks);
  await libvirt.withPatience(30_000).abortJob(LAB, { patience: STILL, onCancelled });
  expect(looks).toBe(5);
  expect(cancelled).toEqual([1]);
});

it("nor is time before libvirt took the cancelling, however often it was asked in vain", async () => {
  let looks = 0;
  let asked = 0;
  const cancelled: number[] = [];
  await using server = await ScriptedLibvirt.start({
    [JOB_STATS]: () => {
      looks += 1;
      return asked > 3 && looks > 6 ? none() : working();
    },
    [BACKUP_XML]: () => (asked > 3 && looks > 6 ? NO_BACKUP : described()),
    [ABORT]: async () => {
      asked += 1;
      if (asked < 4) await sleep(SLOW_MS);
      return asked < 4 ? BUSY : new XdrWriter();
    },
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const onCancelled = (): void => void cancelled.push(asked);
  await libvirt.abortJob(LAB, { patience: STILL, onCancelled });
  expect(cancelled).toEqual([4]);
});

it("a cancelling that libvirt never takes ends with libvirt's reason", async () => {
  await using server = await ScriptedLibvirt.start({
    [JOB_STATS]: working,
    [BACKUP_XML]: described,
    [ABORT]: () => BUSY,
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const patience = { stillMs: 0, libvirtMs: 500 };
  await expect(libvirt.abortJob(LAB, { patience })).rejects.toMatchObject({ code: "E_DOMAIN_BUSY" });
  expect(server.calls.filter((call) => call === ABORT).length).toBeGreaterThan(2);
});

it("a cancelling that had to wait for its connection is made only after another look at whose job runs", async () => {
  let isTheirs = false;
  await using server = await ScriptedLibvirt.start({
    [AUTH_LIST]: async () => {
      await sleep(1200);
      isTheirs = true;
      return new XdrWriter().int(1).int(0);
    },
    [JOB_STATS]: running,
    [BACKUP_XML]: described,
    [ABORT]: () => new XdrWriter(),
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  await libvirt.abortJob(LAB, { isKnown: true, isOurs: () => !isTheirs });
  expect(server.calls).toEqual([JOB_STATS, BACKUP_XML]);
});

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

/** What libvirt 9 says for as long as QEMU does not answer to what it was told on an event. */
const heldBy = (thread: string) => ({
  refuse: 68,
  message: `Timed out during operation: cannot acquire state change lock (held by monitor=${thread})`,
});

it.each(["hang up", "silence"] as const)(
  "a cancelling whose answer is lost (%s) counts as taken when QEMU hangs at the end of its block jobs",
  async (lost) => {
    let isHanging = false;
    let cancelled = 0;
    await using server = await ScriptedLibvirt.start({
      [JOB_STATS]: () => (isHanging ? heldBy("qemu-event") : none()),
      [BACKUP_XML]: () => (isHanging ? described() : NO_BACKUP),
      [ABORT]: () => {
        isHanging = true;
        return lost;
      },
    });
    await using libvirt = new Libvirt({ connect: server.uri, timeoutMs: 300 });
    // The client that QEMU waits for is cut off then.
    const onCancelled = (): void => {
      cancelled += 1;
      setTimeout(() => {
        isHanging = false;
      }, 500);
    };
    const options = { isKnown: true, isOurs: () => true, onCancelled, patience: { libvirtMs: 10_000 } };
    await libvirt.withPatience(10_000).abortJob(LAB, options);
    expect(cancelled).toBe(1);
  },
);

it("once is not enough for that, nor twice with another answer between; and what was told is withdrawn", async () => {
  const events = heldBy("qemu-event");
  const lost = "hang up";
  // One of each look, or cancelling, after the other.
  const looks = [events, working, events, heldBy("remoteDispatchDomainBlockStats"), events, events, working];
  let at = -1;
  const told: string[] = [];
  let aborts = 0;
  await using server = await ScriptedLibvirt.start({
    [JOB_STATS]: () => {
      at += 1;
      const look = looks[at] ?? none;
      told.push("look");
      return typeof look === "function" ? look() : look;
    },
    [BACKUP_XML]: () => (at < looks.length ? described() : NO_BACKUP),
    [ABORT]: () => {
      aborts += 1;
      return lost;
    },
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const onCancelled = (doubted: AbortSignal): void => {
    told.push("taken");
    doubted.addEventListener("abort", () => told.push("doubted"), { once: true });
  };
  const options = { isKnown: true, isOurs: () => true, onCancelled, patience: { libvirtMs: 10_000 } };
  await libvirt.withPatience(10_000).abortJob(LAB, options);
  expect(told).toEqual([...Array.from({ length: 6 }, () => "look"), "taken", "look", "doubted", "look"]);
  expect(aborts).toBe(3);
});

it("a cancelling that was lost, and after one refusal looks that show the job, cuts off nothing", async () => {
  let looks = 0;
  await using server = await ScriptedLibvirt.start({
    // That thread sees to another event, and later to one more.
    [JOB_STATS]: () => {
      looks += 1;
      if (looks > 6) return none();
      return looks === 1 || looks > 4 ? heldBy("qemu-event") : working();
    },
    [BACKUP_XML]: () => (looks > 6 ? NO_BACKUP : described()),
    // The first of them never came; the others are refused.
    [ABORT]: () => (looks === 0 ? "hang up" : BUSY),
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const onCancelled = vi.fn();
  const options = { isKnown: true, isOurs: () => true, onCancelled, patience: { libvirtMs: 10_000 } };
  await libvirt.withPatience(10_000).abortJob(LAB, options);
  expect(looks).toBeGreaterThan(6);
  expect(onCancelled).not.toHaveBeenCalled();
});

it.each([
  ["was sent, and something else holds the domain", "hang up", "remoteDispatchDomainAbortJob"],
  ["was sent, and something else holds the domain", "hang up", "remoteDispatchDomainBackupBegin"],
  ["was sent, and something else holds the domain", "hang up", "x agent=qemu-event"],
  ["was sent, and a full queue is refused at once", "hang up", "qemu-event) due to max_queued limit ("],
  ["was refused", heldBy("qemu-event"), "qemu-event"],
] as const)("but not where it %s: %j, %s", async (_, answer, thread) => {
  let asked = 0;
  await using server = await ScriptedLibvirt.start({
    [JOB_STATS]: () => heldBy(thread),
    [BACKUP_XML]: described,
    [ABORT]: () => {
      asked += 1;
      return answer;
    },
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const onCancelled = vi.fn();
  const options = { isKnown: true, isOurs: () => true, onCancelled, patience: { libvirtMs: 500 } };
  await expect(libvirt.abortJob(LAB, options)).rejects.toMatchObject({ code: "E_DOMAIN_BUSY" });
  expect([asked, onCancelled.mock.calls.length]).toEqual([1, 0]);
});

it("nor where it was never sent", async () => {
  await using server = await ScriptedLibvirt.start({
    [AUTH_LIST]: () => "hang up",
    [JOB_STATS]: () => heldBy("qemu-event"),
    [BACKUP_XML]: described,
  });
  await using libvirt = new Libvirt({ connect: server.uri });
  const onCancelled = vi.fn();
  const options = { isKnown: true, isOurs: () => true, onCancelled, patience: { libvirtMs: 1500 } };
  const failed = expect(libvirt.withPatience(10_000).abortJob(LAB, options)).rejects.toMatchObject({
    code: "E_DOMAIN_BUSY",
  });
  await sleep(300);
  server.say({ [JOB_STATS]: () => heldBy("qemu-event"), [BACKUP_XML]: described });
  await failed;
  expect([onCancelled.mock.calls.length, server.calls.includes(ABORT)]).toEqual([0, false]);
});
