import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { readConfigFile } from "../../bin/config-file.js";

const parsed = vi.hoisted(() => ({ texts: [] as string[] }));
vi.mock("smol-toml", async (original) => {
  const real = await original<typeof import("smol-toml")>();
  return {
    ...real,
    parse: (text: string) => {
      parsed.texts.push(text);
      return real.parse(text);
    },
  };
});

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbdpull-config-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

async function read(text: string): Promise<unknown> {
  const path = join(folder, "nbdpull.toml");
  await writeFile(path, text, { mode: 0o600 });
  return await readConfigFile(path, { isDefault: false });
}

it("needs no parser for comments and blank lines, and leaves all else to it", async () => {
  expect(await read('# repository = "/srv"\n\n \t# more, with a tab\tin it\r\n')).toEqual({});
  expect(await read("")).toEqual({});
  expect(parsed.texts).toEqual([]);
  const text = '# comment\nrepository = "/srv" # another\n';
  expect(await read(text)).toEqual({ repository: "/srv" });
  expect(parsed.texts).toEqual([text]);
  // No TOML, though it begins like a comment.
  await expect(read("# bell \x07\n")).rejects.toMatchObject({ code: "E_CONFIG" });
});
