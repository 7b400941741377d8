import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterEach, beforeEach, expect, it } from "vitest";
import { toolProcess } from "../../../src/backup/host/tool-process.js";
import { restoreEnvironment } from "../../support/environment.js";

const before = { ...process.env };
beforeEach(() => {
  Object.assign(process.env, { AWS_SECRET_ACCESS_KEY: "TOPSECRET", AWS_SESSION_TOKEN: "TOPSECRET" });
});
afterEach(() => restoreEnvironment(before));

it("is given no credentials of a store, and all else", async () => {
  process.env["LIBGUESTFS_DEBUG"] = "1";
  const { stdout } = await execa("cat", ["/proc/self/environ"], { ...toolProcess({ MORE: "x" }) });
  const names = stdout.split("\0").map((each) => each.split("=")[0]);
  expect(names).toEqual(expect.arrayContaining(["PATH", "LC_ALL", "LIBGUESTFS_DEBUG", "MORE"]));
  expect(stdout).not.toMatch(/TOPSECRET|AWS_/);
});

it("is how every program but ssh is started", () => {
  const room = join(import.meta.dirname, "../../../src");
  const starting = readdirSync(room, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => ({ name, text: readFileSync(join(room, name), "utf8") }))
    .filter(({ text }) => /\bexeca\(|\bspawn\(|\bexecFile\(/.test(text));
  expect(starting.length).toBeGreaterThan(8);
  for (const { name, text } of starting) {
    const calls = text.match(/\bexeca\(|\bspawn\(|\bexecFile\(/g)?.length;
    const fitting = text.match(/\.\.\.toolProcess\(|\.\.\.SSH_PROCESS\b/g)?.length;
    expect([name, fitting]).toEqual([name, calls]);
  }
});
