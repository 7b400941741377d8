import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command } from "commander";
import { afterAll, beforeAll, expect, it } from "vitest";
import { fillInDefaults } from "../../bin/options.js";
import type { Run } from "../../bin/run.js";
import { applySettings } from "../../bin/settings.js";
import { settleOptions } from "../../bin/settled-options.js";
import { addBackup } from "../../bin/usage/backup.js";
import { addDoctor } from "../../bin/usage/doctor.js";
import { addRun } from "../../bin/usage/run.js";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-settings-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

/** What the options of a command are, with settings of a file. */
async function optionsOf(
  words: string,
  lines: readonly string[],
  env = {},
): Promise<Record<string, unknown>> {
  const file = join(folder, "nbdpull.toml");
  await writeFile(file, ['repository = "/srv/backups"', ...lines].join("\n"), { mode: 0o600 });
  let options: Record<string, unknown> = {};
  const run = () => async (): Promise<void> => {
    const [command] = program.commands;
    if (!command) throw new Error(`${words} is no command`);
    await settleOptions(command, command.getOptionValue("to") as string);
    options = command.opts();
  };
  const program = new Command("nbdpull").exitOverride();
  const [name = ""] = words.split(" ");
  const add = { backup: addBackup, doctor: addDoctor, run: addRun }[name] ?? addBackup;
  add(program, run as unknown as Run);
  for (const command of program.commands) command.option("--strict");
  program.hook("preSubcommand", async (_, command) => {
    await applySettings(command, ["--config", file], env);
  });
  await program.parseAsync(fillInDefaults(["node", "nbdpull", ...words.split(" ")]));
  return options;
}

it("lists of the command replace those of the settings", async () => {
  const lines = ["exclude = ['vdb', 'vdc']", "all = true", "skip = ['a']"];
  expect(await optionsOf("backup web", lines)).toMatchObject({ exclude: ["vdb", "vdc"] });
  const own = await optionsOf("backup web --exclude vdd --exclude vde", lines);
  expect(own).toMatchObject({ exclude: ["vdd", "vde"] });
  const included = await optionsOf("backup web --include vdb", lines);
  expect([included["include"], included["exclude"]]).toEqual([["vdb"], undefined]);
  expect(await optionsOf("run --all --skip b", lines)).toMatchObject({ skip: ["b"] });
  const named = await optionsOf("run web", lines);
  expect([named["all"], named["skip"]]).toEqual([undefined, undefined]);
  const all = await optionsOf("run --all", ["domains = ['web']"]);
  expect([all["all"], all["domains"]]).toEqual([true, undefined]);
});

it("what the command says wins over a setting that contradicts it", async () => {
  const raw = await optionsOf("backup web --format raw", ["compress = 'zstd'"]);
  expect([raw["format"], raw["compress"]]).toEqual(["raw", undefined]);
  const packed = await optionsOf("backup web --compress", ["format = 'raw'"]);
  expect([packed["format"], packed["compress"]]).toEqual([undefined, "deflate"]);
  const tcp = ["server = 'tcp'", "tls = true", "tls-ca = '/etc/ca.pem'", "host-override = 'hv'"];
  const unix = await optionsOf("backup web --server unix", tcp);
  expect([unix["tls"], unix["tlsCa"], unix["hostOverride"]]).toEqual([undefined, undefined, undefined]);
  expect(await optionsOf("doctor web", tcp)).toMatchObject({ tls: true, hostOverride: "hv" });
});

it("the level of the next point is a setting, which the command overrules", async () => {
  for (const words of ["backup web", "run web", "doctor web"]) {
    expect(await optionsOf(words, ["level = 'full'"]), words).toMatchObject({ level: "full" });
    expect(await optionsOf(`${words} --level auto`, ["level = 'full'"]), words).toMatchObject({
      level: "auto",
    });
  }
  const sunday = { NBDPULL_LEVEL: "full" };
  expect(await optionsOf("run web", ["level = 'auto'"], sunday)).toMatchObject({ level: "full" });
  await expect(optionsOf("run web", ["level = 'half'"])).rejects.toThrow(/level: half.*full/);
});

it("options whose value may be left out take true and false, and what is set can be undone", async () => {
  const bare = await optionsOf("backup web", ["compress = true", "freeze = true", "digests = true"]);
  expect(bare).toMatchObject({ compress: "deflate", freeze: "", digests: "sha256" });
  const env = { NBDPULL_COMPRESS: "no", NBDPULL_FREEZE: "0", NBDPULL_STRICT: "0", NBDPULL_FSYNC: "0" };
  const undone = await optionsOf("backup web", ["compress = 'zstd'", "freeze = true", "strict = true"], env);
  expect([undone["compress"], undone["freeze"], undone["strict"]]).toEqual([undefined, undefined, undefined]);
  expect(undone["fsync"]).toBe(false);
  await expect(optionsOf("backup web", ["freeze = 'perhaps'"])).rejects.toThrow(
    "give auto, no, or mountpoints",
  );
  await expect(optionsOf("backup web", ["fsync = 'perhaps'"])).rejects.toThrow("give true or false");
  expect(await optionsOf("backup web", ["scratch = ''"])).toMatchObject({ scratch: "/var/tmp" });
});

it("rules of what to keep, and trust, are for the repository of the settings only", async () => {
  const lines = ["keep-daily = 7", "trust-repository = true"];
  const own = await optionsOf("run web", lines, { NBDPULL_KEEP_LAST: "3" });
  expect(own).toMatchObject({ keepDaily: 7, keepLast: 3, trustRepository: true });
  const other = await optionsOf("run web --to /mnt/offsite", lines, { NBDPULL_KEEP_LAST: "3" });
  expect([other["keepDaily"], other["keepLast"], other["trustRepository"]]).toEqual([
    undefined,
    undefined,
    undefined,
  ]);
  // The environment names another one: the file's rules are not for that.
  const moved = { NBDPULL_REPOSITORY: "/mnt/offsite", NBDPULL_KEEP_LAST: "3" };
  const theirs = await optionsOf("run web", lines, moved);
  expect(theirs).toMatchObject({ to: "/mnt/offsite", keepLast: 3 });
  expect([theirs["keepDaily"], theirs["trustRepository"]]).toEqual([undefined, undefined]);
});

it("a level and full points at intervals overrule each other, whichever is nearer to the command", async () => {
  const sunday = ["full-every = 'sunday'"];
  expect(await optionsOf("run web", sunday)).toMatchObject({ level: "auto", fullEvery: { weekday: 0 } });
  expect(await optionsOf("backup web", ["full-every = 7"])).toMatchObject({ fullEvery: { days: 7 } });
  expect(await optionsOf("doctor web", sunday)).toMatchObject({ level: "auto" });
  const level = await optionsOf("backup web --level incremental", sunday);
  expect([level["level"], level["fullEvery"]]).toEqual(["incremental", undefined]);
  const every = await optionsOf("run web --full-every 3", ["level = 'full'"]);
  expect([every["level"], every["fullEvery"]]).toEqual(["auto", { days: 3 }]);
  for (const wrong of ["0", "7d", "someday", "99999"]) {
    await expect(optionsOf("run web", [`full-every = '${wrong}'`])).rejects.toThrow(/weekday such as sunday/);
  }
});
