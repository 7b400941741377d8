import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, it, vi } from "vitest";
import { eachDomain } from "../../bin/each-domain.js";
import { InterruptedError, throwIfInterrupted } from "../../bin/exit-codes.js";
import { Output } from "../../bin/output.js";
import { BackupError, UsageError } from "../../src/backup/base/errors.js";
import { tellLeft } from "../../src/backup/base/grace.js";

afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = 0;
});

const noWork = async (): Promise<void> => undefined;

/** Resolves with the domain after so many milliseconds, unless it is ended before. */
type Delays = Readonly<Record<string, number>>;
const after =
  (delays: Delays) =>
  async (domain: string, signal: AbortSignal): Promise<string> =>
    await sleep(delays[domain], domain, { signal }).catch(() => {
      throw signal.reason;
    });

function context() {
  vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const interrupt = new AbortController();
  const output = new Output({ json: true, quiet: true, verbose: false });
  return { output, interrupt, signal: interrupt.signal };
}

it.each([
  [["a"], 2, "a ended before that (1 of 2 domains); of the others nothing is half made"],
  [["backup"], undefined, "backup ended before that; what was half made has been removed"],
])("says that nothing is left, unless something is: %s of %s", (done, all, message) => {
  const stop = new AbortController();
  stop.abort(new InterruptedError("SIGTERM"));
  expect(() => throwIfInterrupted(stop.signal, done, all)).toThrow(message);
  expect(stop.signal.reason.message).toContain("what was half made has been removed");
  tellLeft(stop.signal, "the point stays");
  tellLeft(stop.signal, "the point stays");
  tellLeft(stop.signal, "all is well");
  expect(stop.signal.reason.message).toBe("interrupted by SIGTERM: the point stays; all is well");
  expect(() => throwIfInterrupted(stop.signal, done, all)).toThrow(
    `${message.replace(/;.*/, "")}; the point stays; all is well`,
  );
});

it("has results in the order of the domains, whichever ends first, and works on two at a time", async () => {
  const told: string[] = [];
  const isTold = new AbortController();
  let [running, most] = [0, 0];
  const work = async (domain: string, signal: AbortSignal): Promise<string> => {
    running += 1;
    most = Math.max(most, running);
    try {
      // The first ends last, however busy the machine is.
      if (domain === "a") await once(isTold.signal, "abort");
      const done = await after({ a: 5, b: 5, c: 5 })(domain, signal);
      if (domain === "b") throw new BackupError("E_S3_FAILED", "the store is broken");
      return done;
    } finally {
      running -= 1;
    }
  };
  const tell = (result: string): void => {
    told.push(result);
    if (result === "c") isTold.abort();
  };
  const results = await eachDomain(["a", "b", "c"], context(), work, tell, 2);
  expect(results).toMatchObject([
    { domain: "a", result: "a" },
    { domain: "b", error: { code: "E_S3_FAILED" } },
    { domain: "c", result: "c" },
  ]);
  expect(told).toEqual(["c", "a"]);
  expect(most).toBe(2);
  expect(process.exitCode).toBe(1);
});

it("names those that were done before it was interrupted, and begins no other", async () => {
  const { interrupt, ...of } = context();
  const begun: string[] = [];
  const work = async (domain: string, signal: AbortSignal): Promise<string> => {
    begun.push(domain);
    if (domain === "c") interrupt.abort(new InterruptedError("SIGTERM"));
    return await after({ a: 60_000, b: 1, c: 60_000 })(domain, signal);
  };
  const running = eachDomain(["a", "b", "c", "d"], of, work, noWork, 2);
  await expect(running).rejects.toThrow(/^interrupted by SIGTERM: b ended before that \(1 of 4 domains\)/);
  expect(begun).toEqual(["a", "b", "c"]);
});

it("ends those that run when the command makes no sense for one, and waits for them", async () => {
  const begun: string[] = [];
  const ended: string[] = [];
  const senseless = new UsageError("E_USAGE", "this makes no sense");
  const work = async (domain: string, signal: AbortSignal): Promise<string> => {
    begun.push(domain);
    try {
      if (domain === "b") throw senseless;
      return await after({ a: 60_000 })(domain, signal);
    } finally {
      if (domain === "a") await sleep(10);
      ended.push(domain);
    }
  };
  const running = eachDomain(["a", "b", "c"], context(), work, noWork, 2);
  await expect(running).rejects.toBe(senseless);
  expect(begun).toEqual(["a", "b"]);
  expect(ended).toEqual(["b", "a"]);
});
