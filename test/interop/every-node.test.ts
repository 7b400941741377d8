/**
 * The command's contract with every version of Node that it promises to work with: each command does its
 * work, and says nothing on standard error that nobody asked for.
 */
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { flagsToCollectSoon, flagsToOptimizeLater } from "../../bin/optimize-later.js";
import {
  type Authority,
  type Folder,
  makeAuthority,
  makeFolder,
  startNbdkit,
  uriOf,
} from "../nbd/servers.js";
import { runInHost } from "../support/command-hosts.js";
import { MemoryChain } from "../support/memory-chain.js";
import { finished, NBDPULL, type Ran, startNbdpull } from "../support/nbdpull.js";
import { describeEachNode, NODE_VERSIONS } from "../support/nodes.js";
import { nbdpullMeasuredBy } from "../support/peak-memory.js";
import { qemuImg } from "../support/qemu-nbd.js";
import { startServingBy } from "../support/serving.js";

const CLUSTER = 64 * 1024;
const SIZE = 24 * CLUSTER + 512;
const COMMANDS = 25;
const NO_BASE = "warning: no --checkpoint was given: this point will be no base for increments";

let chain: MemoryChain;
let folder: Folder;
let authority: Authority;
let expected: Buffer;
beforeAll(async () => {
  folder = await makeFolder();
  authority = await makeAuthority(folder, "authority");
  chain = await MemoryChain.start(SIZE);
  chain.disk.write(3 * CLUSTER, Buffer.from("text that shrinks ".repeat(20_000)));
  chain.disk.write(20 * CLUSTER, Buffer.alloc(CLUSTER, 0x77));
  expected = Buffer.from(await chain.show().read(0, SIZE));
  const raw = join(folder.path, "disk.raw");
  await writeFile(raw, expected);
  const zstd = ["-c", "-o", "compression_type=zstd"];
  await qemuImg("convert", "-f", "raw", "-O", "qcow2", ...zstd, raw, join(folder.path, "zstd.qcow2"));
});
afterAll(async () => {
  await chain?.[Symbol.asyncDispose]();
  await folder?.[Symbol.asyncDispose]();
});

describeEachNode("the command", (node, version) => {
  const at = (name: string): string => join(folder.path, version, name);
  const run = (...args: readonly string[]): Promise<Ran> => finished(startNbdpull(args, { node }));

  beforeAll(async () => {
    await mkdir(join(folder.path, version));
  });

  /** Runs it to its end: exit 0, and not a word on stderr but this. Returns what it printed. */
  async function doneWith(warning: string, ...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await run(...args);
    expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: warning });
    return stdout;
  }
  const done = (...args: readonly string[]): Promise<string> => doneWith("", ...args);

  it("has the flags of V8 that the command sets", async () => {
    const { stdout: v8 } = await execa(node, ["-p", "process.versions.v8"]);
    const { stdout: options } = await execa(node, ["--v8-options"]);
    const flags = flagsToOptimizeLater(v8);
    expect(flags).not.toEqual([]);
    for (const flag of [...flags, ...flagsToCollectSoon(v8)]) {
      const name = flag.replace(/=.*/, "").replace(/^--no-/, "--");
      expect(options).toMatch(new RegExp(`^ +${name} `, "m"));
    }
  });

  it("has its help and that of all commands", async () => {
    expect(await done("--version")).toMatch(/^\d+\.\d+\.\d+$/);
    const names = [...(await done("--help")).matchAll(/^ {2}([a-z]+) \[options\]/gm)].map(
      ([, name = ""]) => name,
    );
    expect(names).toHaveLength(COMMANDS);
    // One process loads them all: what this Node has to say of one of them would be heard as well.
    for (const name of names) {
      const { code, stdout, stderr } = await runInHost([NBDPULL, name, "--help"], { node });
      expect({ name, code, stderr }).toEqual({ name, code: 0, stderr: "" });
      expect(stdout).toContain(`nbdpull ${name} `);
    }
  });

  it("prints the completion of each shell", async () => {
    expect(await done("completion", "bash")).toContain("complete -F _nbdpull nbdpull");
    expect(await done("completion", "zsh")).toMatch(/^#compdef nbdpull$/m);
    expect(await done("completion", "fish")).toMatch(/^complete -c nbdpull /m);
  });

  it("proves its main job by itself", async () => {
    expect(await done("demo")).toContain("one flipped bit in the newest increment was found");
  });

  it("describes an export and its map, and copies it", async () => {
    expect(await done("info", chain.uri)).toContain(`size: ${SIZE}`);
    expect(await done("map", chain.uri)).toContain("data");
    await done("pull", chain.uri, at("copy.raw"), "--digests", "--quiet");
    expect((await readFile(at("copy.raw"))).equals(expected)).toBe(true);
    await done("pull", chain.uri, at("copy.qcow2"), "--compress", "--quiet");
    expect(await qemuImg("compare", at("copy.raw"), at("copy.qcow2"))).toContain("Images are identical.");
    const { stdout } = await execa(node, [NBDPULL, "pull", chain.uri, "-", "--quiet"], {
      encoding: "buffer",
    });
    expect(Buffer.from(stdout).equals(expected)).toBe(true);
  });

  it("takes points, lists, verifies, prunes and restores them", async () => {
    const xml = at("job.xml");
    const socket = decodeURIComponent(new URL(chain.uri).searchParams.get("socket") ?? "");
    await writeFile(
      xml,
      `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/><disks><disk name='vda' backup='yes' type='file' backupmode='full' exportname='vda'/></disks></domainbackup>`,
    );
    for (const more of [[], ["--compress", "--digests", "xxh64"]]) {
      await doneWith(
        NO_BASE,
        "attach",
        "--xml",
        xml,
        "--domain",
        "guest",
        "--to",
        at("repo"),
        "--quiet",
        ...more,
      );
    }
    const other = ["--domain", "other", "--disk", "vda", "--offline", "--quiet"];
    await doneWith(NO_BASE, "import", at("copy.raw"), "--to", at("repo"), ...other);
    expect(await done("points", at("repo"), "guest")).toContain("guest: 2 points");
    expect(await done("stats", at("repo"))).toMatch(/^together {2,}3 /m);
    const [first = "", second = ""] = (await readdir(at("repo/guest"))).sort();
    expect(await done("diff", at("repo"), "guest", first, second)).toMatch(/^vda: /m);
    expect(await done("report", at("repo"), "--html", at("report.html"))).toMatch(/^guest +good /m);
    expect(await readFile(at("report.html"), "utf8")).toContain("Backups: 2 domains, all good");
    await done("verify", at("repo"), "--quiet");
    expect(await done("prune", at("repo"), "guest", "--keep-last", "1", "--quiet")).toContain(
      "dropped 1 of 2 points",
    );
    await done("verify", at("repo"), "--quiet");
    await done("restore", at("repo"), "guest", "--to", at("restored"), "--quiet");
    expect((await readFile(at("restored/vda.raw"))).equals(expected)).toBe(true);
  });

  it("serves a point by TLS, and copies it from there", async () => {
    const pem = (name: string): string => join(authority.path, name);
    await using served = await startServingBy(
      node,
      ...[at("repo"), "guest", "--listen", "localhost:0", "--quiet"],
      ...[
        "--tls-cert",
        pem("server-cert.pem"),
        "--tls-key",
        pem("server-key.pem"),
        "--tls-ca",
        pem("ca-cert.pem"),
      ],
    );
    const [uri = ""] = served.uris;
    await done(
      ...["pull", uri, at("served.raw"), "--quiet", "--tls-ca", pem("ca-cert.pem")],
      ...["--tls-cert", pem("client-cert.pem"), "--tls-key", pem("client-key.pem")],
    );
    expect((await readFile(at("served.raw"))).equals(expected)).toBe(true);
    expect((await served.stop()).stderr).toBe("");
  });

  // As the harness. Node 20 has least room: it can not return the memory of a record.
  it("pulls by TLS in less than 100 MiB", async () => {
    const tls = ["--tls=require", `--tls-certificates=${authority.path}`];
    await using server = await startNbdkit(folder, ...tls, "pattern", "160M");
    const uri = uriOf(server.socket, "", `tls-certificates=${encodeURIComponent(authority.path)}`, "nbds");
    const { peakBytes } = await nbdpullMeasuredBy(node, "pull", uri, at("tls.raw"), "--no-fsync", "--quiet");
    expect(peakBytes).toBeLessThan(100 * 1024 * 1024);
  });

  it("compresses and reads with zstd, or says that this Node can't", async () => {
    const { stdout } = await execa(node, ["-p", "'createZstdCompress' in zlib"]);
    const pulled = await run("pull", chain.uri, at("zstd.qcow2"), "--compress=zstd", "--quiet");
    const imported = await run(
      ...[
        "import",
        join(folder.path, "zstd.qcow2"),
        "--to",
        at("zstd-repo"),
        "--domain",
        "z",
        "--disk",
        "vda",
        "--quiet",
      ],
    );
    if (stdout === "true") {
      expect([pulled.code, pulled.stderr, imported.code, imported.stderr]).toEqual([0, "", 0, NO_BASE]);
      expect(await qemuImg("compare", at("copy.raw"), at("zstd.qcow2"))).toContain("Images are identical.");
      await done("verify", at("zstd-repo"), "--quiet");
    } else {
      const why = new RegExp(`needs Node 22\\.15 or newer, this is ${version.replaceAll(".", "\\.")}`);
      expect([pulled.code, pulled.stderr]).toEqual([2, expect.stringMatching(why)]);
      expect([imported.code, imported.stderr]).toEqual([1, expect.stringMatching(why)]);
    }
  });
});

it("the command is tried from the oldest Node on that the package allows", async () => {
  const path = join(import.meta.dirname, "../../package.json");
  const { engines } = JSON.parse(await readFile(path, "utf8")) as { engines: { node: string } };
  expect(`${engines.node}.0`).toBe(`>=${NODE_VERSIONS[0]}`);
  expect(NODE_VERSIONS.map((version) => version.split(".")[0])).toEqual(["20", "22", "24"]);
});
