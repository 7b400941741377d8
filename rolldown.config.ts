import { defineConfig, type InputOptions, type OutputChunk, type Plugin, rolldown } from "rolldown";
import { licensePlugin } from "rolldown-license-plugin";

const WORKERS = [
  "compress/compress-worker",
  "restore/copy-worker",
  "digest/digest-worker",
  "prune/merge-worker",
  "verify/verify-worker",
].map((name) => `dist/src/backup/${name}.js`);

/**
 * What is loaded most often, by kind. What the same kinds need is one file: Node takes as long to find and
 * read a small file as to compile some 20 KiB. No kind loads for that what it doesn't need.
 */
const KINDS: Readonly<Record<string, RegExp>> = {
  start: /\/dist\/bin\/command-line\.js$/,
  usage: /\/dist\/bin\/usage\/[\w-]+\.js$/,
  ...Object.fromEntries(
    ["backup", "copy", "mount", "points", "prune", "pull", "restore", "verify"].map((name) => [
      name,
      new RegExp(`/dist/bin/commands/${name}\\.js$`),
    ]),
  ),
  display: /\/dist\/bin\/display\.js$/,
  execa: /\/node_modules\/execa\/index\.js$/,
  pulling: /\/dist\/src\/backup\/take\/take-point\.js$/,
  "small-thread": /\/(?:compress|digest)-worker\.js$/,
  "large-thread": /\/(?:copy|merge|verify)-worker\.js$/,
};

/** Files that are found by their names. */
const NAMED = /\/(?:command-line|\w+-worker)\.js$/;

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

const SOURCES: InputOptions = {
  input: ["dist/bin/nbdpull.js", ...WORKERS],
  platform: "node",
  external: /^node:/,
  // Our modules do nothing by being loaded: what a command doesn't use of an index is left out of what it
  // loads. Of others' packages each says itself what may be left out.
  treeshake: { moduleSideEffects: [{ test: /\/dist\/src\//, sideEffects: false }] },
  // Nobody imports from the files that are started.
  preserveEntrySignatures: "allow-extension",
  plugins: [withoutCommandFiles, lightBuiltins],
};

/** The name of the file that a module goes into; undefined: as the bundler has it. */
async function filesByKind(): Promise<(module: string) => string | undefined> {
  const bundle = await rolldown(SOURCES);
  const { output } = await bundle.generate({ format: "esm" });
  await bundle.close();
  const chunks = output.filter((each): each is OutputChunk => each.type === "chunk");
  const kindsOf = new Map<string, Set<string>>();
  for (const [kind, isOfKind] of Object.entries(KINDS)) {
    const entries = chunks.filter(
      ({ facadeModuleId, moduleIds }) =>
        isOfKind.test(facadeModuleId ?? "") || (kind === "start" && moduleIds.some((id) => ALWAYS.test(id))),
    );
    if (entries.length === 0) throw new Error(`no file is of the kind ${kind} any longer`);
    const needed = new Set<string>();
    const need = (file: string): void => {
      const chunk = chunks.find(({ fileName }) => fileName === file);
      if (!chunk || needed.has(file)) return;
      needed.add(file);
      for (const id of chunk.moduleIds) kindsOf.set(id, (kindsOf.get(id) ?? new Set()).add(kind));
      for (const imported of chunk.imports) need(imported);
    };
    for (const { fileName } of entries) need(fileName);
  }
  return (id) => {
    const kinds = NAMED.test(id) ? undefined : kindsOf.get(id);
    return kinds && ["for", ...kinds].join("-");
  };
}

/**
 * The command and its threads in few files instead of several hundred, which Node loads faster
 * (docs/performance-history.md). Other people's packages are among them, so their licences come along.
 */
export default defineConfig(async () => {
  const fileOf = await filesByKind();
  return {
    ...SOURCES,
    plugins: [
      SOURCES.plugins,
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
      codeSplitting: {
        // Whatever needs a module needs what the module imports. Threads need some of what every command does,
        // but not commander.
        includeDependenciesRecursively: false,
        groups: [{ name: (id) => fileOf(id), debugName: "kinds" }],
      },
    },
  };
});
