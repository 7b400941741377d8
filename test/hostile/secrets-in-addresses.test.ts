import { readFile, writeFile } from "node:fs/promises";
import { expect, it } from "vitest";
import { freshPaths } from "../support/fresh.js";
import { runNbdpull } from "../support/nbdpull.js";
import { SmallStore } from "../support/small-store.js";

const fresh = freshPaths();
const SECRET = /TOPSECRET|TOP|SECRET/;

const ADDRESSES = [
  "s3://AKID:TOPSECRET@backups/x",
  "s3://AKID:TOP/SECRET@backups/x",
  "s3://backups/x?endpoint=https://u:TOPSECRET@h",
  "s3://backups/x?secret=TOPSECRET",
  "S3://AKID:TOPSECRET@backups/x",
  "https://u:TOPSECRET@host/x",
  "user:TOPSECRET@host:/x",
  "user:TOPSECRET@host",
];

const COMMANDS: Readonly<Record<string, (address: string) => readonly string[]>> = {
  points: (address) => ["points", address],
  "points --json": (address) => ["points", address, "--json", "--verbose"],
  init: (address) => ["init", address],
  "backup --json": (address) => ["backup", "guest", "--to", address, "--json"],
  prune: (address) => ["prune", address, "--keep-last", "1", "--json"],
  "copy TO": (address) => ["copy", "/nowhere", address],
  "copy FROM": (address) => ["copy", address, "/nowhere"],
};

it.each(
  Object.entries(COMMANDS).flatMap(([name, words]) =>
    ADDRESSES.map((address) => [name, address, words] as const),
  ),
)("%s shows no secret of %s", async (_, address, words) => {
  const ran = await runNbdpull(words(address), { create: false });
  expect([2, 4]).toContain(ran.code);
  expect(`${ran.stdout}${ran.stderr}`).not.toMatch(SECRET);
});

it.each([["backup", "guest", "--to"], ["prune", "--keep-last", "1"], ["verify"]])(
  "%s writes none into metrics",
  async (command, ...words) => {
    const metrics = fresh("nbdpull.prom");
    const ran = await runNbdpull([command, ...words, ADDRESSES[0] ?? "", "--metrics", metrics], {
      create: false,
    });
    expect(ran).toMatchObject({ code: 2, stderr: expect.stringContaining("E_S3_ADDRESS") });
    expect(await readFile(metrics, "utf8").catch(() => "")).not.toMatch(/SECRET|s3:/);
  },
);

it("report writes none into its page or metrics", async () => {
  const [html, metrics] = [fresh("report.html"), fresh("nbdpull.prom")];
  const words = ["report", ADDRESSES[0] ?? "", "--html", html, "--prometheus", metrics, "--json"];
  const ran = await runNbdpull(words, { create: false });
  expect(ran.code).toBe(2);
  const written = await Promise.all([html, metrics].map((path) => readFile(path, "utf8").catch(() => "")));
  expect([ran.stdout, ran.stderr, ...written].join("")).not.toMatch(SECRET);
});

it.each(ADDRESSES)("settings show none of %s", async (address) => {
  const config = fresh("nbdpull.toml");
  await writeFile(config, `repository = ${JSON.stringify(address)}\nkeep-last = 3\n`, { mode: 0o600 });
  for (const ran of [
    await runNbdpull(["points", "--config", config]),
    await runNbdpull(["prune", "/elsewhere", "--config", config]),
    await runNbdpull(["points"], { env: { NBDPULL_REPOSITORY: address } }),
  ]) {
    expect([2, 4]).toContain(ran.code);
    expect(`${ran.stdout}${ran.stderr}`).not.toMatch(SECRET);
  }
});

it.each(["user:TOPSECRET@host:9000", "user:TOP/SECRET@host:9000", "minio:9000"])(
  "none of an endpoint in the environment is shown that is no URL: %s",
  async (endpoint) => {
    const keys = { AWS_ACCESS_KEY_ID: "AKID", AWS_SECRET_ACCESS_KEY: "TOPSECRET" };
    const env = { ...keys, AWS_ENDPOINT_URL: endpoint };
    const ran = await runNbdpull(["points", "s3://backups/x", "--json"], { env });
    expect(ran).toMatchObject({ code: 2, stderr: expect.stringContaining("E_S3_ADDRESS") });
    expect(ran.stderr).toContain("it begins with https:// or http://");
    expect(`${ran.stdout}${ran.stderr}`).not.toMatch(SECRET);
  },
);

it("none of an endpoint that the environment names is shown or kept", async () => {
  await using store = await SmallStore.start();
  store.answer = (_, answer) => void answer.writeHead(403).end();
  const env = {
    AWS_ACCESS_KEY_ID: "AKID",
    AWS_SECRET_ACCESS_KEY: "TOPSECRET",
    AWS_ENDPOINT_URL: store.endpoint.replace("//", "//user:TOPSECRET@"),
  };
  const ran = await runNbdpull(["points", "s3://backups/x", "--json"], { env });
  expect(ran).toMatchObject({ code: 4, stderr: expect.stringContaining(`at ${store.endpoint} was refused`) });
  expect(`${ran.stdout}${ran.stderr}`).not.toMatch(SECRET);
});
