/** Stores that answer late, or never, in place of Ceph: what a command does then. */
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { freshPaths } from "../support/fresh.js";
import { startNbdpull } from "../support/nbdpull.js";

const MARKER = JSON.stringify({
  format: "nbdpull-repository",
  version: 1,
  id: "2b1f9c0e-6a53-4c39-9a3e-5d1f6f0a7c11",
  store: { conditionalCreate: true, conditionalReplace: true },
});
const LIST = `<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`;
const KEYS = { AWS_ACCESS_KEY_ID: "AKID", AWS_SECRET_ACCESS_KEY: "secret", AWS_CONFIG_FILE: "/dev/null" };
/** Ends of processes on a busy machine included; what ends by a time-out takes 30 s and more. */
const SOON_MS = 8_000;

const fresh = freshPaths();
let asked = 0;
/** How many requests are answered. */
let answers = 0;
let refusal: ((answer: ServerResponse) => void) | undefined;
const server = createServer((request, answer) => {
  asked += 1;
  if (refusal) return refusal(answer);
  if (asked > answers) return;
  if (request.url?.includes("list-type=2")) return void answer.end(LIST);
  if (!request.url?.includes("nbdpull.json")) return void answer.writeHead(404).end();
  answer.setHeader("ETag", '"1"');
  answer.end(MARKER);
});
let port = 0;

const listen = (at: number): Promise<void> => new Promise((done) => server.listen(at, "127.0.0.1", done));
const close = async (): Promise<void> => {
  const closed = new Promise((done) => server.close(done));
  server.closeAllConnections();
  await closed;
};

beforeEach(async () => {
  asked = 0;
  answers = 1000;
  refusal = undefined;
  await listen(0);
  ({ port } = server.address() as AddressInfo);
});
afterEach(async () => {
  if (server.listening) await close();
});
const environment = (): Record<string, string> => ({ ...KEYS, AWS_ENDPOINT_URL: `http://127.0.0.1:${port}` });

const REPO = "s3://backups/x";
const COMMANDS: readonly (readonly string[])[] = [
  ["points", REPO],
  ["points", REPO, "--fix-clock"],
  ["verify", REPO],
  ["stats", REPO],
  ["report", REPO],
  ["diff", REPO, "guest", "one", "two"],
  ["restore", REPO, "guest", "--to", "FOLDER"],
  ["restore", REPO, "guest", "--to", "FOLDER", "--live", "--define"],
  ["prune", REPO, "--keep-last", "1"],
  ["forget", REPO, "guest", "--force"],
  ["repair", REPO],
  ["serve", REPO, "guest", "--listen", "127.0.0.1:0"],
  ["mount", REPO, "guest", "FOLDER"],
  ["rehearse", REPO, "guest", "--expect", "serial:x"],
  ["copy", REPO, "FOLDER"],
];
/** Those that ask less before anything else. */
const SHORT: readonly (readonly string[])[] = [
  ["init", "s3://backups/new"],
  ["import", "FOLDER/x.qcow2", "--domain", "guest", "--disk", "vda", "--to", REPO],
  ["backup", "guest", "--to", REPO],
  ["attach", "guest", "--to", REPO],
  ["doctor", "--to", REPO],
];

describe("a signal ends a command at once whose store has become silent", () => {
  const rows = [
    ...COMMANDS.flatMap((words) => [0, 1, 2].map((count) => [count, words] as const)),
    ...SHORT.flatMap((words) => [0, 1].map((count) => [count, words] as const)),
  ];
  it.each(rows)("after %i answers: %o", async (count, words) => {
    answers = count;
    const args = words.map((word) => word.replace("FOLDER", fresh("folder")));
    const run = startNbdpull(args, { env: environment(), create: false });
    const ended = run.ended.then((ran) => ({ ran }));
    while (asked <= count && (await Promise.race([ended, sleep(20)])) === undefined);
    const early = await Promise.race([ended, sleep(50)]);
    expect(early, early?.ran?.stderr).toBeUndefined();
    const at = performance.now();
    run.kill("SIGTERM");
    expect((await ended).ran).toMatchObject({ code: 143 });
    expect(performance.now() - at).toBeLessThan(SOON_MS);
  });
});

describe("a store that is down when a command begins", () => {
  it("is waited for, which the command tells", async () => {
    await close();
    const run = startNbdpull(["points", REPO], { env: environment() });
    await sleep(5_000);
    await listen(port);
    const ran = await run.ended;
    expect(ran).toMatchObject({ code: 0, stdout: "no restore points yet" });
    expect(ran?.stderr).toMatch(
      new RegExp(
        `^waiting for http://127.0.0.1:${port}, which does not answer \\(ECONNREFUSED\\), for up to 60 s$`,
      ),
    );
  });

  it("is waited for where it says that it is busy", async () => {
    const since = performance.now();
    refusal = (answer) => {
      if (performance.now() - since > 5_000) refusal = undefined;
      answer.writeHead(503, { date: new Date().toUTCString() });
      answer.end(`<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>`);
    };
    expect(await startNbdpull(["points", REPO], { env: environment() }).ended).toMatchObject({ code: 0 });
  });

  it("is not waited for where nobody knows the host", async () => {
    const env = { ...environment(), AWS_ENDPOINT_URL: "http://nobody.invalid" };
    const at = performance.now();
    const ran = await startNbdpull(["points", REPO], { env }).ended;
    expect(ran).toMatchObject({ code: 1, stderr: expect.stringContaining("E_S3_UNREACHABLE") });
    expect(performance.now() - at).toBeLessThan(20_000);
  });
});
