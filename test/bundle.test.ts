import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const bundle = join(dirname(fileURLToPath(import.meta.url)), "../dist/bin");

describe("the command's bundle", () => {
  it("imports only its own files and Node, so that it works without node_modules", () => {
    const scripts = readdirSync(bundle).filter((name) => name.endsWith(".js"));
    const loaded = scripts.flatMap((name) =>
      [
        ...readFileSync(join(bundle, name), "utf8").matchAll(
          /^(?:import|export) (?:.* from )?"([^"]+)";?$/gm,
        ),
      ].map(([, from]) => from ?? ""),
    );
    expect(loaded).toContain("node:net");
    expect(loaded.filter((from) => !/^(?:node:|\.\/)/.test(from))).toEqual([]);
  });

  it("has the licences of its dependencies", () => {
    const licences = readFileSync(join(bundle, "THIRD-PARTY-LICENSES.txt"), "utf8");
    for (const name of ["commander", "zod", "execa", "fast-xml-parser", "xxhash-wasm"]) {
      expect(licences).toMatch(new RegExp(`^${name} \\d.* \\((?:MIT|ISC)\\)\\n\\n\\S`, "m"));
    }
  });
});
