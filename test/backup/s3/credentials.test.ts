/** Where credentials and regions come from: AWS's own files, as the address or a variable names a section. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { parseS3Address } from "../../../src/backup/s3/address.js";
import { Bucket } from "../../../src/backup/s3/bucket.js";
import { restoreEnvironment } from "../../support/environment.js";
import { SmallStore } from "../../support/small-store.js";

const before = { ...process.env };
let folder: string;
let store: SmallStore;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-aws-files-"));
  store = await SmallStore.start();
  store.answer = (_, answer) => void answer.writeHead(404).end();
  const section = (name: string): string =>
    `[${name}]\naws_access_key_id = KEY-OF-${name}\naws_secret_access_key = secret\n`;
  await writeFile(join(folder, "credentials"), section("default") + section("backup"));
  await writeFile(
    join(folder, "config"),
    "[default]\nregion = eu-central-1\n[profile backup]\nregion = eu-north-1\n[profile empty]\n",
  );
});
afterAll(async () => {
  await store?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});
beforeEach(() => {
  for (const name of Object.keys(process.env)) if (name.startsWith("AWS_")) delete process.env[name];
  process.env["AWS_SHARED_CREDENTIALS_FILE"] = join(folder, "credentials");
  process.env["AWS_CONFIG_FILE"] = join(folder, "config");
  // No machine's role is asked for.
  process.env["AWS_EC2_METADATA_DISABLED"] = "true";
});
afterEach(() => restoreEnvironment(before));

/** Whose key has signed a request, and for which region. */
async function signedBy(options: string): Promise<string> {
  using bucket = await Bucket.open(parseS3Address(`s3://backups/x?endpoint=${store.endpoint}${options}`));
  await bucket.find("k");
  const { authorization = "" } = store.seen.at(-1)?.headers ?? {};
  const [, key = "", region = ""] = /Credential=([^/]+)\/\d+\/([^/]+)\/s3\//.exec(authorization) ?? [];
  return `${key} in ${region}`;
}

it("are those of the default section", async () => {
  expect(await signedBy("")).toBe("KEY-OF-default in eu-central-1");
});

it("are those of the section that the address names", async () => {
  expect(await signedBy("&profile=backup")).toBe("KEY-OF-backup in eu-north-1");
});

it("are those of the section that AWS_PROFILE names, unless the address names another one", async () => {
  process.env["AWS_PROFILE"] = "backup";
  expect(await signedBy("")).toBe("KEY-OF-backup in eu-north-1");
  expect(await signedBy("&profile=default")).toBe("KEY-OF-default in eu-central-1");
});

it("take their region from the address, then from variables, then from the files", async () => {
  process.env["AWS_REGION"] = "us-west-2";
  expect(await signedBy("&profile=backup")).toBe("KEY-OF-backup in us-west-2");
  expect(await signedBy("&profile=backup&region=sa-east-1")).toBe("KEY-OF-backup in sa-east-1");
});

it("are missed by name where a section has none", async () => {
  await expect(signedBy("&profile=empty")).rejects.toMatchObject({ code: "E_S3_CREDENTIALS" });
});
