import { defineConfig } from "rolldown";

/**
 * The command in few files instead of many, which Node loads faster (docs/performance.md). Other people's packages stay where
 * they are, with their licences.
 */
export default defineConfig({
  input: "dist/bin/nbdpull.js",
  platform: "node",
  external: /^[^./]/,
  // Our modules do nothing by being loaded: what a command doesn't use of an index is left out of what it loads.
  treeshake: { moduleSideEffects: (id) => !id.includes("/dist/src/") },
  output: { dir: "dist/bundle", format: "esm" },
});
