/** The line to a store in this process: silent, encrypted by a CA that nobody knows, or by one that is named. */
import { readFile } from "node:fs/promises";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, expect, it } from "vitest";
import { makeCertificates } from "../../../bench/certificates.js";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { restoreEnvironment } from "../../support/environment.js";
import { freshPaths } from "../../support/fresh.js";
import { SmallStore } from "../../support/small-store.js";
import { describeWith } from "../../support/tools.js";

const LIST = `<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`;
/** Half a minute, and time for a busy machine. */
const IDLE = { timeout: 90_000 };
const fresh = freshPaths();
const before = { ...process.env };

beforeEach(() => {
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: "AKID", AWS_SECRET_ACCESS_KEY: "secret" });
});
afterEach(() => restoreEnvironment(before));

it(
  "asks again after half a minute in which nothing came of a GET, or of the answer to a PUT",
  IDLE,
  async () => {
    await using store = await SmallStore.start();
    const asked = new Map<string, number>();
    store.answer = ({ method, url }, answer) => {
      const tries = (asked.get(method) ?? 0) + 1;
      asked.set(method, tries);
      answer.setHeader("ETag", '"1"');
      // The first GET becomes silent within the body.
      if (tries === 1 && method === "GET") answer.writeHead(200, { "content-length": 4 }).write("ab");
      if (tries > 1) answer.end(url.includes("got") ? "abcd" : undefined);
    };
    using bucket = await Bucket.open({ bucket: "backups", prefix: "", endpoint: store.endpoint });
    const began = performance.now();
    const [got, put] = await Promise.all([bucket.get("got", 10), bucket.put("put", Buffer.from("x"))]);
    expect([got?.bytes.toString(), put]).toEqual(["abcd", "1"]);
    expect([...asked]).toEqual(
      expect.arrayContaining([
        ["GET", 2],
        ["PUT", 2],
      ]),
    );
    const tookMs = performance.now() - began;
    expect(tookMs).toBeGreaterThan(25_000);
    expect(tookMs).toBeLessThan(60_000);
  },
);

describeWith(["certtool"], "a store that speaks TLS", () => {
  it("is refused where its CA is unknown, and known by AWS_CA_BUNDLE", async () => {
    const { certificates } = await makeCertificates(fresh("certificates"));
    const of = (name: string): string => `${certificates}/${name}.pem`;
    const [key, cert] = await Promise.all([readFile(of("server-key")), readFile(of("server-cert"))]);
    const server = createServer({ key, cert }, (_, answer) => void answer.end(LIST));
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    try {
      const endpoint = `https://localhost:${(server.address() as AddressInfo).port}`;
      const open = (at = endpoint): Promise<Bucket> =>
        Bucket.open({ bucket: "backups", prefix: "", endpoint: at });
      const refused = { name: "PreconditionError", code: "E_S3_TLS" };
      await expect(open()).rejects.toMatchObject(refused);
      process.env["AWS_CA_BUNDLE"] = of("ca-cert");
      (await open()).close();
      // The certificate is of another host.
      await expect(open(endpoint.replace("localhost", "127.0.0.1"))).rejects.toMatchObject(refused);
      process.env["AWS_CA_BUNDLE"] = fresh("nothing");
      await expect(open()).rejects.toMatchObject({ name: "UsageError", code: "E_S3_CA" });
    } finally {
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    }
  });
});

it("says that there are no credentials", async () => {
  for (const name of Object.keys(process.env)) if (name.startsWith("AWS_")) delete process.env[name];
  const none = { AWS_CONFIG_FILE: "/dev/null", AWS_SHARED_CREDENTIALS_FILE: "/dev/null" };
  Object.assign(process.env, { ...none, AWS_EC2_METADATA_DISABLED: "true" });
  await using store = await SmallStore.start();
  const opening = Bucket.open({ bucket: "backups", prefix: "", endpoint: store.endpoint });
  await expect(opening).rejects.toMatchObject({ name: "PreconditionError", code: "E_S3_CREDENTIALS" });
});
