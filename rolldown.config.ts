import { defineConfig } from "rolldown";

/**
 * The command in few files instead of many, which Node loads faster (docs/performance.md). Other people's packages stay where
 * they are, with their licences.
 */
export default defineConfig({
  input: "dist/bin/nbdpull.js",
  platform: "node",
  external: /^[^./]/,
  output: { dir: "dist/bundle", format: "esm" },
});
