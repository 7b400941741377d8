import { defineConfig, type Plugin } from "rolldown";
import { licensePlugin } from "rolldown-license-plugin";

const WORKERS = [
  "compress/compress-worker",
  "restore/copy-worker",
  "digest/digest-worker",
  "prune/merge-worker",
  "verify/verify-worker",
];

/**
 * Takes Node's own modules without their ES module faces: to make one, Node reads all that the module
 * exports, and so loads its streams, its readline and more for `node:fs` alone.
 */
const lightBuiltins: Plugin = {
  name: "light-builtins",
  renderChunk: (code) =>
    code.replaceAll(/^import (.+) from "(node:[^"]+)";$/gm, (_, what: string, module: string) => {
      const [, whole, named] = /^(?:\* as )?([\w$]+)?(?:, )?(\{.*\})?$/.exec(what) ?? [];
      const taken = [whole, named?.replaceAll(" as ", ": ")].filter((part) => part !== undefined);
      if (taken.length === 0) throw new Error(`no way to take ${what} from ${module}`);
      return taken.map((part) => `var ${part} = process.getBuiltinModule("${module}");`).join(" ");
    }),
};

/** Commander starts other programs for commands that are files of their own, of which we have none. */
const withoutCommandFiles: Plugin = {
  name: "without-command-files",
  transform(code, id) {
    if (!id.endsWith("/commander/lib/command.js")) return null;
    const loaded = "const childProcess = require('node:child_process');";
    if (!code.includes(loaded)) throw new Error("commander loads child_process in another way now");
    return code.replace(loaded, "const childProcess = undefined;");
  },
};

/** What every command loads, but for what loads the commands: that waits for them, and they for this. */
const ALWAYS =
  /\/node_modules\/(?:commander|pretty-bytes)\/|\/dist\/bin\/(?:domain-options|exit-codes|options|output|progress|result-stream|run|settings|sizes|standard-output|terminal|version)\.js$/;

/**
 * The command and its threads in few files instead of several hundred, which Node loads faster
 * (docs/performance.md). Other people's packages are among them, so their licences come along.
 */
export default defineConfig({
  input: ["dist/bin/nbdpull.js", ...WORKERS.map((name) => `dist/src/backup/${name}.js`)],
  platform: "node",
  external: /^node:/,
  // Our modules do nothing by being loaded: what a command doesn't use of an index is left out of what it
  // loads. ECharts does it only where it says so: each kind of chart is registered by name.
  treeshake: {
    moduleSideEffects: [
      { test: /\/dist\/src\//, sideEffects: false },
      { test: /\/node_modules\/(?!echarts\/|zrender\/)/, sideEffects: true },
    ],
  },
  plugins: [
    withoutCommandFiles,
    lightBuiltins,
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
  output: {
    dir: "dist/bundle",
    format: "esm",
    codeSplitting: { groups: [{ name: "every-command", test: ALWAYS }] },
  },
});
