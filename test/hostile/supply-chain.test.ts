/** What `npm ci` brings is what was reviewed, and runs nothing by itself. */
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");

interface Locked {
  readonly integrity?: string;
  readonly link?: boolean;
  readonly hasInstallScript?: boolean;
}

describe.each(["package-lock.json", "bench/peers/package-lock.json"])("%s", (name) => {
  async function packages(): Promise<[string, Locked][]> {
    const lock = JSON.parse(await readFile(join(root, name), "utf8")) as { packages: Record<string, Locked> };
    return Object.entries(lock.packages).filter(([path]) => path !== "");
  }

  it("holds each package to a SHA-512", async () => {
    const all = await packages();
    expect(all.length).toBeGreaterThan(5);
    const loose = all.filter(([, { integrity = "" }]) => !integrity.startsWith("sha512-"));
    expect(loose.map(([path]) => path)).toEqual([]);
  });

  it("has no package with an install script", async () => {
    const scripts = (await packages()).filter(([, { hasInstallScript }]) => hasInstallScript);
    expect(scripts.map(([path]) => path)).toEqual([]);
  });
});

it("installs the benchmark's peers without running their scripts", async () => {
  const manifest = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as {
    scripts: Record<string, string>;
  };
  expect(manifest.scripts["bench:peers"]).toContain("--ignore-scripts");
});
