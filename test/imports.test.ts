import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

interface Room {
  /** What the room does, in one sentence. */
  readonly what: string;
  readonly mayImport: readonly string[];
}

/**
 * The rooms of `src/backup`, top first. A file belongs to the room of its folder. It may import from that
 * room and from the rooms in that room's row. A new file needs no entry.
 */
const ROOMS: Readonly<Record<string, Room>> = {
  take: {
    what: "the jobs that make something: a file of one export; a point of a running guest, a stopped one, a foreign job, or images",
    mayImport: words(
      "checks prove guest pull chain compress export repository libvirt digest qcow2 image host base",
    ),
  },
  checks: {
    what: "what would make a backup fail, asked before it begins, and `doctor`",
    mayImport: words("guest libvirt repository storage qcow2 image host base"),
  },
  live: {
    what: "a guest that runs from a point, while its disks are filled or only to see whether it comes up",
    mayImport: words("restore serve definition pull chain repository libvirt qcow2 image host base"),
  },
  mount: {
    what: "the disks of a point as files in a folder, by nbdfuse",
    mayImport: words("serve repository host base"),
  },
  restore: {
    what: "the disks of a point rebuilt, into files, over devices or over exports, and the domain beside them",
    mayImport: words(
      "definition pull chain export repository storage libvirt digest image threads host base",
    ),
  },
  copy: {
    what: "one repository kept in step with another: whole points, proven while they are copied, and pruned after it",
    mayImport: words("verify prune pull chain repository storage image base"),
  },
  verify: {
    what: "every stored byte of points compared with what the point says: structure, tables, digests",
    mayImport: words("chain repository storage digest qcow2 image threads base"),
  },
  repair: {
    what: "damage of points mended, where a digest says what is right: clusters, digest files, refcounts",
    mayImport: words("chain repository storage digest qcow2 image host base"),
  },
  prove: {
    what: "a disk compared with the chain that an increment of it would be based on, by the chain's digests",
    mayImport: words("chain export repository base"),
  },
  prune: {
    what: "which points go, and how the points that stay take over the clusters that they need",
    mayImport: words("chain repository storage digest qcow2 image threads host base"),
  },
  serve: {
    what: "a point read at random offsets, and exported by NBD",
    mayImport: words("chain repository export image host base"),
  },
  report: {
    what: "what there is, told: the facts of domains, where on disks what was written, how two points differ",
    mayImport: words("chain repository image base"),
  },
  guest: {
    what: "one domain and the backup job on it: which base, which folder, which connection, how much scratch space",
    mayImport: words("chain libvirt repository image host base"),
  },
  definition: {
    what: "a domain's definition for a host: no more in it than a stranger may ask for, what the host lacks replaced, and libvirt asked",
    mayImport: words("libvirt host base"),
  },
  pull: {
    what: "THE data path: extents, plan, lanes, landing, tables; from any source that can be read into a new image",
    mayImport: words("compress export digest qcow2 image host base"),
  },
  chain: {
    what: "one disk of a point through its backing chain: layers checked against their digests, and what they show together",
    mayImport: words("repository storage digest qcow2 image base"),
  },
  compress: {
    what: "clusters on their way into a compressed image: examined, digested and compressed on other threads",
    mayImport: words("digest qcow2 image threads base"),
  },
  repository: {
    what: "the folder of points: manifests, the lock, the atomic commit, and the journal that finishes an interrupted prune",
    mayImport: words("storage image host base"),
  },
  storage: {
    what: "what a repository lies in: folders, what is in them, and files read at positions; and how points are written to a store",
    mayImport: words("s3 image host base"),
  },
  libvirt: {
    what: "libvirt's protocol spoken, its documents read and written, its backup job recognized and watched; knows of no repository",
    mayImport: words("host base"),
  },
  digest: {
    what: "what every stored cluster must be: the algorithms, the digest file, and the threads that compute digests",
    mayImport: words("image host threads base"),
  },
  qcow2: {
    what: "the qcow2 format: its codec, layout, reader, writers, editor and check",
    mayImport: words("image base"),
  },
  image: {
    what: "what an image is, the file it lies in, and the raw format with its extent map",
    mayImport: words("host base"),
  },
  export: {
    what: "an NBD export as a source for backups: opened, and mapped to clean, zero and data",
    mayImport: words("base"),
  },
  s3: {
    what: "an S3-compatible object store, spoken to by AWS's SDK: objects, uploads in parts, leases; knows of no points",
    mayImport: words("host base"),
  },
  host: {
    what: "the machine below: durable files, names published atomically, QEMU's locks, sockets, ssh to another machine",
    mayImport: words("base"),
  },
  threads: {
    what: "work on other threads: a pool, the side of the thread, and the same interface on the calling thread",
    mayImport: words("base"),
  },
  base: {
    what: "the words that every room uses: errors, damage, clean, zero and data, progress, things done in parallel",
    mayImport: [],
  },
};
/** A point must stay readable without libvirt, so only these rooms may know it. */
const USERS_OF_LIBVIRT = words("take checks live restore guest definition");

/** Points are read in one way wherever they lie; these rooms write to folders of this machine in their own way. */
const HOLDERS_OF_FOLDERS = words("bin checks guest host live prune repair repository restore src take");
/** And these do something else for a repository in an object store, nearly always because they write. */
const ASKERS_OF_STORES = words(
  "bin chain checks copy guest live prune repair repository restore serve take verify",
);

/**
 * The floors of everything else, top first. A file may import from its own floor and those below. The first
 * pattern that matches a path decides.
 */
const FLOORS: readonly (readonly RegExp[])[] = [
  [/^bin\//, /^bench\//],
  [/^src\/backup\/index\.ts/],
  [/^src\/backup\//],
  [/^src\/nbd\/index/],
  [/^src\/nbd\/server\//],
  [/^src\/nbd\/(client|queries)\./],
  [/^src\/nbd\/(changes|piece-reads)\./],
  [/^src\/nbd\/flush-doubts\./],
  [
    /^src\/nbd\/(block-status|map-limits|range|pool|open-connection|losses|outage|same-server|guarded-sink|refusal)\./,
  ],
  [/^src\/nbd\/connection\./],
  [/^src\/nbd\/(dial|exchange|heeding)\./],
  [/^src\/nbd\/(negotiate|settings|socket|tls|export-info)\./],
  [/^src\/nbd\/(coverage|uri|abort|watchdog|late-chunks|tls-failure)\./],
  [/^src\/nbd\/host\./],
  [/^src\/nbd\/patience\//],
  [/^src\/nbd\/wire\/(?!constants|bytes)/],
  [/^src\/nbd\/wire\/bytes/],
  [/^src\/nbd\/errors\./],
  [/^src\/nbd\/wire\/constants/],
];

/** Bytes in, values out: these must not import sockets, files, timers or processes. */
const PURE = [
  /^src\/nbd\/wire\//,
  /^src\/nbd\/(negotiate|coverage|uri|host|guarded-sink)\./,
  /^src\/nbd\/server\/.*-frames\./,
  /^src\/backup\/(base\/extent|export\/extent-algebra|repository\/manifest|guest\/judge-scratch)\./,
  /^src\/backup\/pull\/(plan|segment|window|reorder)\./,
  /^src\/backup\/prune\/(prune-plan|retention)\./,
  /^src\/backup\/report\/domain-facts\./,
  /^src\/backup\/image\/(image|run-list|run-cursor|slots)\./,
  /^src\/backup\/qcow2\/(format|header|layout|size-list|stream-placement|table-run-list|tables)\./,
  /^src\/backup\/libvirt\/(documents\/[\w-]+|hypervisor|domain-state|job-info)\./,
  /^src\/backup\/libvirt\/rpc\/(xdr|packets|procedures?|disk-procedures|wire-objects|typed-params|events|errors|flags|daemon-address)\./,
];
const IO =
  /^node:(net|tls|fs|fs\/promises|http|dgram|child_process|worker_threads|timers|timers\/promises)$|^execa$/;

const files = ["bin", "src", "bench"].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => /\.tsx?$/.test(name))
    .map((name) => join(folder, name)),
);
const imports = new Map(files.map((file) => [file, importsOf(file)]));

function importsOf(file: string): string[] {
  const source = readFileSync(join(root, file), "utf8");
  const specifiers = [
    ...source.matchAll(/^(?:import|export)\b[^"';]*?["']([^"']+)["']/gms),
    ...source.matchAll(/\bimport\(\s*["']([^"']+)["']/g),
  ].map((match) => match[1] ?? "");
  return specifiers.map((specifier) =>
    specifier.startsWith(".") ? sourceOf(relative(root, join(root, dirname(file), specifier))) : specifier,
  );
}

function sourceOf(compiled: string): string {
  const source = compiled.replace(/\.js$/, ".ts");
  return files.includes(`${source}x`) ? `${source}x` : source;
}

function words(text: string): string[] {
  return text.split(" ");
}

/** The room of a file in `src/backup`; undefined for all other files and for the index. */
function roomOf(file: string): string | undefined {
  return /^src\/backup\/([^/]+)\//.exec(file)?.[1];
}

function floorOf(file: string): number {
  return FLOORS.findIndex((patterns) => patterns.some((pattern) => pattern.test(file)));
}

function edges(): { from: string; to: string }[] {
  return [...imports].flatMap(([from, list]) =>
    list.filter((to) => imports.has(to)).map((to) => ({ from, to })),
  );
}

describe("the source tree", () => {
  it("has a place for every file", () => {
    const isPlaced = (file: string): boolean => {
      const room = roomOf(file);
      if (room !== undefined) return Object.hasOwn(ROOMS, room);
      return floorOf(file) >= 0 && (!file.startsWith("src/backup/") || file === "src/backup/index.ts");
    };
    expect(files.filter((file) => !isPlaced(file))).toEqual([]);
    const inUse = new Set(files.map(roomOf));
    expect(Object.keys(ROOMS).filter((room) => !inUse.has(room))).toEqual([]);
  });

  it("has its imports read correctly", () => {
    expect(importsOf("src/backup/pull/pull.ts")).toContain("src/backup/pull/lanes.ts");
    // A type-only import, and a dynamic one.
    expect(importsOf("src/backup/restore/restored-files.ts")).toContain("src/backup/repository/manifest.ts");
    expect(importsOf("bin/commands/restore.ts")).toContain("src/backup/restore/restore-over.ts");
    expect(edges().length).toBeGreaterThan(files.length);
  });

  it("imports downwards only", () => {
    const up = edges().filter(({ from, to }) => floorOf(from) > floorOf(to));
    expect(up).toEqual([]);
  });

  it("has rooms that import only the rooms in their row", () => {
    const wrong = edges().filter(({ from, to }) => {
      const [room, other] = [roomOf(from), roomOf(to)];
      return (
        room !== undefined && other !== undefined && room !== other && !ROOMS[room]?.mayImport.includes(other)
      );
    });
    expect(wrong).toEqual([]);
  });

  it("has rooms that stand above everything in their row, and import all of it", () => {
    const order = Object.keys(ROOMS);
    const used = new Set(edges().map(({ from, to }) => `${roomOf(from)} imports ${roomOf(to)}`));
    const wrong: string[] = [];
    for (const [room, { mayImport }] of Object.entries(ROOMS)) {
      for (const other of mayImport) {
        if (order.indexOf(other) <= order.indexOf(room)) wrong.push(`${room} stands below ${other}`);
        if (!used.has(`${room} imports ${other}`)) wrong.push(`${room} imports nothing of ${other}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  it("lets few rooms know of libvirt", () => {
    const rooms = Object.keys(ROOMS).filter((room) => ROOMS[room]?.mayImport.includes("libvirt"));
    expect(rooms).toEqual(USERS_OF_LIBVIRT);
  });

  it.each(["rpc", "documents"])("has libvirt's folder %s stand below the rest of its room", (folder) => {
    const own = `src/backup/libvirt/${folder}/`;
    const up = edges().filter(
      ({ from, to }) => from.startsWith(own) && to.startsWith("src/backup/libvirt/") && !to.startsWith(own),
    );
    expect(up).toEqual([]);
  });

  it("lets few rooms tell a folder of this machine from an object store", () => {
    const rooms = (isSuch: (file: string) => boolean): string[] =>
      [...new Set(files.filter(isSuch).map((file) => roomOf(file) ?? file.split("/")[0] ?? ""))].sort();
    const holds = (file: string): boolean => importsOf(file).includes("src/backup/host/held-folder.ts");
    const asks = (file: string): boolean => /\bisInStore\b/.test(readFileSync(join(root, file), "utf8"));
    expect(rooms(holds)).toEqual(HOLDERS_OF_FOLDERS);
    expect(rooms(asks)).toEqual(ASKERS_OF_STORES);
  });

  it("has no cycles", () => {
    const done = new Set<string>();
    const walk = (file: string, path: readonly string[]): void => {
      expect(path, "a cycle").not.toContain(file);
      if (done.has(file)) return;
      for (const to of imports.get(file) ?? []) if (imports.has(to)) walk(to, [...path, file]);
      done.add(file);
    };
    for (const file of files) walk(file, []);
  });

  it("lets backup code import the client only through its index, and the client import no backup code", () => {
    const side = edges().filter(
      ({ from, to }) =>
        from.startsWith("src/backup/") && to.startsWith("src/nbd/") && to !== "src/nbd/index.ts",
    );
    const back = edges().filter(
      ({ from, to }) => from.startsWith("src/nbd/") && to.startsWith("src/backup/"),
    );
    expect([...side, ...back]).toEqual([]);
  });

  it("shares only constants, and measures of a peer's pace, between the built-in server and the client", () => {
    const shared = edges().filter(
      ({ from, to }) => from.startsWith("src/nbd/server/") && !to.startsWith("src/nbd/server/"),
    );
    const mayBeShared = /^src\/nbd\/(wire\/constants\.ts|patience\/)/;
    expect(shared.filter(({ to }) => !mayBeShared.test(to))).toEqual([]);
  });

  it("keeps I/O out of pure modules, sockets in two files, and the command line in bin", () => {
    const found: string[] = [];
    for (const [file, list] of imports) {
      for (const to of list) {
        if (IO.test(to) && PURE.some((pattern) => pattern.test(file))) found.push(`${file} imports ${to}`);
        const isClient = file.startsWith("src/nbd/") && !file.startsWith("src/nbd/server/");
        if (isClient && to === "node:net" && file !== "src/nbd/socket.ts")
          found.push(`${file} imports ${to}`);
        if (isClient && to === "node:tls" && file !== "src/nbd/tls.ts") found.push(`${file} imports ${to}`);
        if (to === "commander" && !file.startsWith("bin/")) found.push(`${file} imports ${to}`);
      }
      const source = readFileSync(join(root, file), "utf8");
      if (file.startsWith("src/") && /process\.(exitCode|exit\(|stdout|stderr)/.test(source)) {
        found.push(`${file} prints or exits`);
      }
    }
    expect(found).toEqual([]);
  });
});
