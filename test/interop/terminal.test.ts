/** What is seen in a real terminal (tmux), at several widths, and while the width changes. */
import { randomFillSync } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type Folder, makeFolder, startNbdkit } from "../nbd/servers.js";
import { nbdpull } from "../support/nbdpull.js";
import { Terminal } from "../support/terminal.js";
import { describeWith } from "../support/tools.js";

const MiB = 1024 ** 2;
const BAR = /[█░]{8}/;
const UNDER_WAY = /^ ?vd[ab] .*\d%/;

/** Two disks that are read for some seconds, and the job that serves them. */
async function slowJob(folder: Folder): Promise<AsyncDisposable & { readonly xml: string }> {
  const disks = join(folder.path, "disks");
  await mkdir(disks);
  for (const name of ["vda", "vdb"])
    await writeFile(join(disks, name), randomFillSync(Buffer.alloc(16 * MiB)));
  const server = await startNbdkit(
    folder,
    "--filter=rate",
    "file",
    `dir=${disks}`,
    "connection-rate=26M",
    "burstiness=0.01",
  );
  const list = ["vda", "vdb"].map(
    (name) => `<disk name='${name}' backup='yes' type='file' backupmode='full' exportname='${name}'/>`,
  );
  const xml = join(folder.path, "job.xml");
  await writeFile(
    xml,
    `<domainbackup mode='pull'><server transport='unix' socket='${server.socket}'/><disks>${list.join("")}</disks></domainbackup>`,
  );
  return { xml, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

describeWith(["tmux", "nbdkit"], "the display", () => {
  async function take(columns: number, narrower?: number): Promise<void> {
    await using folder = await makeFolder();
    await using job = await slowJob(folder);
    await using terminal = await Terminal.open(columns);
    const repository = join(folder.path, "repo");
    const args = ["--xml", job.xml, "--domain", "web", "--to", repository, "--create", "--connections", "1"];
    await terminal.nbdpull("attach", ...args);
    const live = (): Promise<string[]> =>
      terminal.rows().then((rows) => rows.filter((row) => UNDER_WAY.test(row) || BAR.test(row)));
    // Both disks, each in one row, with rate and time left.
    let seen: string[] = [];
    const isLive = async (): Promise<boolean> => {
      seen = await live();
      return seen.length === 2 && seen.every((row) => /iB\/s +\d:\d\d left$/.test(row));
    };
    await expect.poll(isLive, { interval: 50 }).toBe(true);
    for (const row of seen) {
      expect(row.length).toBeLessThan(columns);
      expect(BAR.test(row)).toBe(columns >= 80);
    }
    if (narrower !== undefined) {
      await terminal.resize(narrower);
      const widths = (): Promise<boolean[]> =>
        live().then((rows) => rows.map((row) => row.length < narrower));
      await expect.poll(widths, { interval: 50 }).toEqual([true, true]);
      await terminal.resize(columns);
    }
    await expect.poll(() => terminal.rows()).toContainEqual("exit 0");
    // The shell's prompt comes after that.
    await expect.poll(async () => (await terminal.lines()).at(-1)).toMatch(/^\$ ?$/);
    const lines = await terminal.lines();
    // The result is where the display was, and the warning before it is whole, though it is longer than a
    // narrow row.
    expect(lines.slice(lines.findIndex((line) => line.startsWith("warning")))).toEqual(
      [
        "warning: no --checkpoint was given: this point will be no base for increments",
        expect.stringMatching(/^web \S+: full restore point in [\d.]+ s$/),
        "  vda: 16 MiB, full, 16 MiB stored",
        "  vdb: 16 MiB, full, 16 MiB stored",
        "exit 0",
        "$ ",
      ].map((line) => (line === "$ " ? expect.stringMatching(/^\$ ?$/) : line)),
    );
  }

  it("has a row for each disk with rate and time left, and gives way to the result, at any width", async () => {
    await Promise.all([take(40), take(80, 50), take(200)]);
  });

  it("is not there where the terminal can't replace lines, or output goes elsewhere", async () => {
    await using folder = await makeFolder();
    await using job = await slowJob(folder);
    const repository = join(folder.path, "repo");
    const args = ["attach", "--xml", job.xml, "--domain", "web", "--to", repository, "--create"];
    await using terminal = await Terminal.open(80);
    await terminal.type("export TERM=dumb");
    await terminal.nbdpull(...args);
    const seen: string[] = [];
    const ended = async (): Promise<string[]> => {
      seen.push(...(await terminal.rows()));
      return seen;
    };
    await expect.poll(ended, { interval: 100 }).toContainEqual("exit 0");
    expect(seen.filter((row) => UNDER_WAY.test(row) || BAR.test(row))).toEqual([]);
    expect(seen).toContainEqual("  vda: 16 MiB, full, 16 MiB stored");
  });
});

describeWith(["tmux"], "colours", () => {
  const RED = "\x1b[31mnbdpull:";

  it("are there on a terminal, but not with NO_COLOR, and elsewhere only where they are asked for", async () => {
    const wrong = ["points", "/nowhere"];
    for (const [env, flags, coloured] of [
      [{}, [], true],
      [{ NO_COLOR: "1" }, [], false],
      [{ NO_COLOR: "1" }, ["--color", "always"], true],
      [{}, ["--color=never"], false],
    ] as const) {
      await using terminal = await Terminal.open(120, env);
      await terminal.nbdpull(...wrong, ...flags);
      await expect.poll(() => terminal.rows()).toContainEqual("exit 4");
      const line = (await terminal.rows({ colours: true })).find((row) => row.includes("E_NO_REPOSITORY"));
      expect([env, flags, line?.includes(RED)]).toEqual([env, flags, coloured]);
    }
    const piped = (...flags: string[]) => nbdpull(...wrong, ...flags).then(({ stderr }) => stderr);
    expect(await piped()).toMatch(/^nbdpull: E_NO_REPOSITORY: /);
    expect(await piped("--color", "always")).toContain(RED);
  });
});
