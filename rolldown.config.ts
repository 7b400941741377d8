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
 * What is loaded most often, by kind. What the same kinds need is one file, and files that nearly the same
 * kinds need are joined, see {@link joined}.
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

/**
 * Bytes of our code that Node reads and compiles in the time in which it finds and opens one more file, and
 * what that imports.
 */
const BYTES_OF_A_FILE = 20 * 1024;

/** What takes long to load of Node's own, and so many bytes that no kind loads it for want of a file. */
const SLOW_OF_NODE = /^node:(?:child_process|crypto|tls|worker_threads|zlib)$/;
const BYTES_OF_SLOW = 16 * 1024 * 1024;

/** Modules that go into one file. */
interface Part {
  /** The kinds that load it. */
  readonly kinds: ReadonlySet<string>;
  /** Bytes of code, and what Node's own modules are worth that it loads. */
  readonly bytes: number;
  readonly modules: readonly string[];
}

/** Bytes that all kinds load for a part. */
function costOf({ kinds, bytes }: Pick<Part, "kinds" | "bytes">): number {
  return kinds.size * (BYTES_OF_A_FILE + bytes);
}

/**
 * Joins parts as long as that spares all kinds together more, by files, than it costs those that load what
 * only others need. No two of them import each other in the end: one would run before what it needs.
 *
 * @param imports what each module imports
 */
function joined(parts: readonly Part[], imports: ReadonlyMap<string, readonly string[]>): Part[] {
  const left = [...parts];
  for (;;) {
    const pairs = left
      .flatMap((a, index) => left.slice(index + 1).map((b) => ({ a, b, both: union(a, b) })))
      .map((pair) => ({ ...pair, spared: costOf(pair.a) + costOf(pair.b) - costOf(pair.both) }))
      .filter(({ spared }) => spared > 0)
      .sort((one, other) => other.spared - one.spared);
    const next = pairs.find(({ a, b, both }) => {
      const others = left.filter((part) => part !== a && part !== b);
      return mayBeOne(both, others, imports);
    });
    if (next === undefined) return left;
    left.splice(left.indexOf(next.a), 1);
    left.splice(left.indexOf(next.b), 1, next.both);
  }
}

function union(a: Part, b: Part): Part {
  const kinds = new Set([...a.kinds, ...b.kinds]);
  return { kinds, bytes: a.bytes + b.bytes, modules: [...a.modules, ...b.modules] };
}

/**
 * Whether a part imports nothing that imports it, and nothing that not all of its kinds load: they would load
 * that too.
 */
function mayBeOne(
  part: Part,
  others: readonly Part[],
  imports: ReadonlyMap<string, readonly string[]>,
): boolean {
  const partOf = new Map(others.flatMap((other) => other.modules.map((id) => [id, other] as const)));
  const own = new Set(part.modules);
  const seenInside = new Set<string>();
  const seenOutside = new Set<string>();
  // Parts that it imports, all of whose modules are loaded then.
  const reached = new Set<Part>();
  /** True if there is something that rules it out. */
  const walk = (id: string, isOutside: boolean): boolean => {
    if (own.has(id)) return isOutside;
    const other = partOf.get(id);
    if (other !== undefined) {
      if (reached.has(other)) return false;
      reached.add(other);
      for (const kind of part.kinds) if (!other.kinds.has(kind)) return true;
      return other.modules.some((each) => (imports.get(each) ?? []).some((next) => walk(next, true)));
    }
    // A module that only passes on what others have is in no file.
    const passed = isOutside ? seenOutside : seenInside;
    if (passed.has(id)) return false;
    passed.add(id);
    return (imports.get(id) ?? []).some((next) => walk(next, isOutside));
  };
  return !part.modules.some((id) => (imports.get(id) ?? []).some((next) => walk(next, false)));
}

/** The name of the file that a module goes into; undefined: as the bundler has it. */
async function filesByKind(): Promise<(module: string) => string | undefined> {
  const imports = new Map<string, readonly string[]>();
  const bundle = await rolldown({
    ...SOURCES,
    plugins: [
      SOURCES.plugins,
      { name: "imports", moduleParsed: ({ id, importedIds }) => void imports.set(id, importedIds) },
    ],
  });
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
  const bytesOf = new Map(
    chunks.flatMap(({ modules }) =>
      Object.entries(modules).map(([id, { renderedLength }]) => [id, renderedLength] as const),
    ),
  );
  const parts = new Map<string, { kinds: Set<string>; bytes: number; modules: string[] }>();
  for (const [id, kinds] of kindsOf) {
    if (NAMED.test(id)) continue;
    const name = [...kinds].join("-");
    const part = parts.get(name) ?? { kinds, bytes: 0, modules: [] };
    const slow = imports.get(id)?.filter((imported) => SLOW_OF_NODE.test(imported)) ?? [];
    part.bytes += (bytesOf.get(id) ?? 0) + slow.length * BYTES_OF_SLOW;
    part.modules.push(id);
    parts.set(name, part);
  }
  const names = new Map(
    joined([...parts.values()], imports).flatMap(({ kinds, modules }) =>
      modules.map((id) => [id, ["for", ...kinds].join("-")] as const),
    ),
  );
  return (id) => names.get(id);
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
