import { defineConfig } from "rolldown";

/** What is run to make a package, from the sources: dist/bin has the command only as it is shipped. */
export default defineConfig({
  input: "packaging/write-pages.ts",
  platform: "node",
  // What the commands do is not asked for.
  external: /\/commands\//,
  output: { dir: "dist/packaging", format: "esm", cleanDir: true },
});
