import { defineConfig } from "rolldown";

/** The command in few files instead of some two hundred: Node starts it in two thirds of the time (docs/performance.md). */
export default defineConfig({
  input: "dist/bin/nbdpull.js",
  platform: "node",
  output: { dir: "dist/bundle", format: "esm" },
});
