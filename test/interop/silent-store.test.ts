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
/** The first request on which nothing is answered any more. */
let silence: ((method: string, url: string) => boolean) | undefined;
let refusal: ((answer: ServerResponse) => void) | undefined;
const server = createServer((request, answer) => {
  asked += 1;
  if (refusal) return refusal(answer);
  const { method = "", url = "" } = request;
  if (silence?.(method, url)) answers = 0;
  if (asked > answers) return;
  if (silence && !url.includes("list-type=2")) return void trial(method, url, answer);
  if (request.url?.includes("list-type=2")) return void answer.end(LIST);
  if (!request.url?.includes("nbdpull.json")) return void answer.writeHead(404).end();
  answer.setHeader("ETag", '"1"');
  answer.end(MARKER);
});
let port = 0;

/** What is written is taken, and is not there afterwards: it was replaced. */
function trial(method: string, url: string, answer: ServerResponse): void {
  if (method === "HEAD" || url.includes("nbdpull.json")) return void answer.writeHead(404).end();
  if (method === "GET") return void answer.writeHead(412).end();
  if (method === "POST" && url.includes("uploads")) {
    return void answer.end(
      `<?xml version="1.0"?><InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>`,
    );
  }
  answer.setHeader("ETag", `"${asked}"`);
  answer.end();
}

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
  silence = undefined;
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
    ...COMMANDS.map((words) => [2, words] as const),
    ...SHORT.map((words) => [1, words] as const),
    ...[...COMMANDS, ...SHORT]
      .filter(([name]) => name === "restore" || name === "init")
      .map((words) => [0, words] as const)
      .slice(0, 3),
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

it.each([
  ["at the first object", (method: string) => method === "PUT"],
  ["when an upload is begun", (method: string) => method === "POST"],
  ["during parts", (_: string, url: string) => url.includes("partNumber")],
])("a signal ends the trial of a store soon that has become silent %s", async (_, isSilent) => {
  silence = isSilent;
  const run = startNbdpull(["init", "s3://backups/new"], { env: environment(), create: false });
  await expect.poll(() => answers, { timeout: 60_000 }).toBe(0);
  const at = performance.now();
  run.kill("SIGTERM");
  expect(await run.ended).toMatchObject({ code: 143 });
  expect(performance.now() - at).toBeLessThan(SOON_MS);
});

describe("a store that is down when a command begins", () => {
  it("is asked once by a check that can't open it", async () => {
    refusal = (answer) => void answer.writeHead(403).end();
    const ran = await startNbdpull(["doctor", "--to", REPO], { env: environment(), create: false }).ended;
    expect(ran?.stdout).toContain("was refused");
    expect(asked).toBe(1);
  });

  it("is told of after seconds, also where nothing is refused", async () => {
    answers = 0;
    const run = startNbdpull(["points", REPO], { env: environment() });
    await expect.poll(() => asked, { timeout: 60_000 }).toBeGreaterThan(0);
    await sleep(2_500);
    run.kill("SIGTERM");
    const ran = await run.ended;
    expect(ran?.stderr).toContain(
      `waiting for http://127.0.0.1:${port}, which has not answered yet, for about a minute`,
    );
  });

  it("is waited for, which the command tells", async () => {
    await close();
    const run = startNbdpull(["points", REPO], { env: environment() });
    await sleep(2_500);
    await listen(port);
    const ran = await run.ended;
    expect(ran).toMatchObject({ code: 0, stdout: "no restore points yet" });
    expect(ran?.stderr).toMatch(
      new RegExp(
        `^waiting for http://127.0.0.1:${port}, which does not answer \\(ECONNREFUSED\\), for about a minute$`,
      ),
    );
  });

  it("is waited for where it says that it is busy", async () => {
    const since = performance.now();
    refusal = (answer) => {
      if (performance.now() - since > 2_500) refusal = undefined;
      answer.writeHead(503, { date: new Date().toUTCString() });
      answer.end(`<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>`);
    };
    const ran = await startNbdpull(["points", REPO], { env: environment() }).ended;
    expect(ran).toMatchObject({ code: 0 });
    expect(ran?.stderr).toContain(`http://127.0.0.1:${port}, which answers SlowDown, for about a minute`);
  });

  it("is not waited for where nobody knows the host", async () => {
    const env = { ...environment(), AWS_ENDPOINT_URL: "http://nobody.invalid" };
    const at = performance.now();
    const ran = await startNbdpull(["points", REPO], { env }).ended;
    expect(ran).toMatchObject({ code: 1, stderr: expect.stringContaining("E_S3_UNREACHABLE") });
    expect(performance.now() - at).toBeLessThan(20_000);
  });
});
