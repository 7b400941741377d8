import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/**
 * The floors of the house, top first: a file may import from its own floor and from those below. The first pattern
 * that fits a path decides; a file that no pattern fits has no place yet, which is a failure too.
 */
const FLOORS: readonly (readonly RegExp[])[] = [
  [/^bin\//, /^bench\//],
  [/^src\/backup\/index/],
  [/^src\/backup\/(restore-over|restored-definition|restored-files)\./],
  [/^src\/backup\/(attach|backup|stopped-backup|import|restore|verify|pull-file|prune|serve)\./],
  [/^src\/backup\/(restore-source|restorable)\./],
  [/^src\/backup\/checks\//],
  [/^src\/backup\/guest-plan\./],
  [/^src\/backup\/guest-jobs\./],
  [/^src\/backup\/merge-disk\./],
  [/^src\/backup\/merge-raw-target\./],
  [/^src\/backup\/merge-(target|masks)\./],
  [/^src\/backup\/merge-walk\./],
  [/^src\/backup\/(take-point|point-view|foreign-image)\./],
  [/^src\/backup\/chain-view\./],
  [/^src\/backup\/copy-segments\./],
  [/^src\/backup\/(pull-image|overlay|chain-check|overwrite)\./],
  [/^src\/backup\/(plain-store|compressed-store)\./],
  [
    /^src\/backup\/(write-through|ledger|compress-segment|collect-landing|image-store|device-target|export-target)\./,
  ],
  [
    /^src\/backup\/(chain|pull|pace|request-size|open-export|export-extents|image-server)\./,
    /^src\/backup\/libvirt\/(running-job|checkpoints|freeze)/,
  ],
  [/^src\/backup\/verify-(data|structure)\./],
  [/^src\/backup\/(copy|digest|verify)-worker\./],
  [
    /^src\/backup\/(layer|repository|publish|places|digest-behind|kept-files|keep-files|choose-point|needed-checkpoints)\./,
    /^src\/backup\/libvirt\/virsh/,
  ],
  [/^src\/backup\/(prune-journal|job-folder|job-way|level|scratch-guard)\./],
  [/^src\/backup\/ssh-place\./],
  [/^src\/backup\/(job-place|ssh-forward|private-socket|ssh-to)\./],
  [/^src\/backup\/image\/(index|create|single-use)\./],
  [/^src\/backup\/(copy|verify)-threads\./],
  [/^src\/backup\/(copy|verify)-service\./],
  [/^src\/backup\/proven-images\./],
  [/^src\/backup\/proven-image\./],
  [/^src\/backup\/image\/.*-(reader|writer|check)\./],
  [
    /^src\/backup\/(source-image|overwrites|patch|domain-lock|digest-file|new-files|settle|in-order|files|rate-limit|all-or-none|buffer-pool|digest-threads|progress|image-locks|ssh)\./,
    /^src\/backup\/libvirt\//,
  ],
  [/^src\/backup\/cluster-(workers|worker)\./],
  [/^src\/backup\/(thread-service|own-thread)\./],
  [/^src\/backup\/thread-pool\./],
  [/^src\/backup\/cluster-(work|thread-data)\./],
  [
    /^src\/backup\/(plan|piece-index|listen-address|prune-plan|retention|digest|manifest|extent-algebra|block-target|scratch-room)\./,
    /^src\/backup\/image\/(?!image\.)/,
  ],
  [/^src\/backup\/(extent|cluster-cache)\./, /^src\/backup\/image\/image\./],
  [/^src\/backup\/(damage|zeroes|breather)\./],
  [/^src\/backup\/errors\./],
  [/^src\/nbd\/index/],
  [/^src\/nbd\/server\//],
  [/^src\/nbd\/(client|queries)\./],
  [/^src\/nbd\/(changes|piece-reads)\./],
  [/^src\/nbd\/flush-doubts\./],
  [/^src\/nbd\/(block-status|range|pool|guarded-sink|refusal)\./],
  [/^src\/nbd\/connection\./],
  [/^src\/nbd\/(dial|exchange)\./],
  [/^src\/nbd\/(negotiate|settings|socket|tls|export-info)\./],
  [/^src\/nbd\/(coverage|uri|abort|watchdog|tls-failure)\./],
  [/^src\/nbd\/host\./],
  [/^src\/nbd\/wire\/(?!constants|bytes)/],
  [/^src\/nbd\/wire\/bytes/],
  [/^src\/nbd\/errors\./],
  [/^src\/nbd\/wire\/constants/],
];

/** Bytes in, values out: these may not reach for sockets, files, timers or processes. */
const PURE = [
  /^src\/nbd\/wire\//,
  /^src\/nbd\/(negotiate|coverage|uri|host|guarded-sink)\./,
  /^src\/nbd\/server\/.*-frames\./,
  /^src\/backup\/(extent|extent-algebra|plan|settle|places|pace|in-order|manifest|retention|prune-plan|scratch-room)\./,
  /^src\/backup\/image\/(image|qcow2-format|qcow2-layout|qcow2-header|qcow2-tables|run-list|table-run-list|size-list|stream-placement)\./,
  /^src\/backup\/libvirt\/(job-xml|hypervisor)/,
];
const IO =
  /^node:(net|tls|fs|fs\/promises|http|dgram|child_process|worker_threads|timers|timers\/promises)$|^execa$/;

const files = ["bin", "src", "bench"].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => join(folder, name)),
);
const imports = new Map(files.map((file) => [file, importsOf(file)]));

function importsOf(file: string): string[] {
  const source = readFileSync(join(root, file), "utf8");
  const specifiers = [...source.matchAll(/^(?:import|export)\b[^"';]*?["']([^"']+)["']/gms)].map(
    (match) => match[1] ?? "",
  );
  return specifiers.map((specifier) =>
    specifier.startsWith(".")
      ? relative(root, join(root, dirname(file), specifier)).replace(/\.js$/, ".ts")
      : specifier,
  );
}

function floorOf(file: string): number {
  return FLOORS.findIndex((patterns) => patterns.some((pattern) => pattern.test(file)));
}

function edges(): { from: string; to: string }[] {
  return [...imports].flatMap(([from, list]) =>
    list.filter((to) => imports.has(to)).map((to) => ({ from, to })),
  );
}

describe("the house", () => {
  it("has a place for every file", () => {
    expect(files.filter((file) => floorOf(file) < 0)).toEqual([]);
  });

  it("is read from real imports", () => {
    expect(importsOf("src/backup/pull.ts")).toContain("src/backup/in-order.ts");
    expect(edges().length).toBeGreaterThan(files.length);
  });

  it("has imports that point down only", () => {
    const up = edges().filter(({ from, to }) => floorOf(from) > floorOf(to));
    expect(up).toEqual([]);
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

  it("lets the backup engine into the client through its index only, and the client know nothing of backups", () => {
    const side = edges().filter(
      ({ from, to }) =>
        from.startsWith("src/backup/") && to.startsWith("src/nbd/") && to !== "src/nbd/index.ts",
    );
    const back = edges().filter(
      ({ from, to }) => from.startsWith("src/nbd/") && to.startsWith("src/backup/"),
    );
    expect([...side, ...back]).toEqual([]);
  });

  it("shares nothing but constants between the built-in server and the client's parser", () => {
    const shared = edges().filter(
      ({ from, to }) => from.startsWith("src/nbd/server/") && !to.startsWith("src/nbd/server/"),
    );
    expect(shared.filter(({ to }) => to !== "src/nbd/wire/constants.ts")).toEqual([]);
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
