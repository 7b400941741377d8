import { defineConfig } from "rolldown";
import { licensePlugin } from "rolldown-license-plugin";

const WORKERS = [
  "compress/compress-worker",
  "restore/copy-worker",
  "digest/digest-worker",
  "verify/verify-worker",
];

/**
 * The command and its threads in few files instead of several hundred, which Node loads faster (docs/performance.md). Other
 * people's packages are among them, so their licences come along.
 */
export default defineConfig({
  input: ["dist/bin/nbdpull.js", ...WORKERS.map((name) => `dist/src/backup/${name}.js`)],
  platform: "node",
  external: /^node:/,
  // Our modules do nothing by being loaded: what a command doesn't use of an index is left out of what it loads.
  treeshake: { moduleSideEffects: (id) => !id.includes("/dist/src/") },
  plugins: [
    licensePlugin({
      failOnUnlicensed: true,
      done(packages, context) {
        const texts = packages.map(
          ({ name, version, license, licenseText }) =>
            `${name} ${version} (${license})\n\n${licenseText.trim()}\n`,
        );
        const source = `What is bundled here of other people's work.\n\n${texts.join(`\n${"-".repeat(80)}\n\n`)}`;
        context.emitFile({ type: "asset", fileName: "THIRD-PARTY-LICENSES.txt", source });
      },
    }),
  ],
  output: { dir: "dist/bundle", format: "esm" },
});
