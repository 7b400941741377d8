import { mkdir, mkdtemp, readdir, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { thisSystemProcess } from "../../../src/backup/host/process-identity.js";
import { keepLocally } from "../../../src/backup/storage/kept-locally.js";

const YESTERDAY = Date.now() / 1000 - 86_401;

describe("files that are kept on this machine until a store has them", () => {
  let parent: string;
  beforeEach(async () => {
    parent = await mkdtemp(join(tmpdir(), "nbdpull-keeping-"));
  });
  afterEach(() => rm(parent, { recursive: true, force: true }));

  /** What another run has left, or has now. */
  async function folder(name: string, owner?: object): Promise<string> {
    const path = join(parent, name);
    await mkdir(join(path, "files"), { recursive: true });
    await writeFile(join(path, "files", "nvram.fd"), "secret");
    if (owner) await writeFile(join(path, "owner.json"), JSON.stringify(owner));
    return path;
  }

  async function keep(): Promise<Map<string, string>> {
    const stored = new Map<string, string>();
    const create = async (name: string, bytes: Buffer): Promise<void> => void stored.set(name, `${bytes}`);
    await keepLocally({ create }, (made) => writeFile(join(made, "domain.xml"), "<domain/>"), parent);
    return stored;
  }

  it("are stored, and nothing is left of them", async () => {
    expect([...(await keep())]).toEqual([["domain.xml", "<domain/>"]]);
    expect(await readdir(parent)).toEqual([]);
  });

  it("are removed by the next run if theirs was killed, and left alone while it lives or may", async () => {
    const alive = await thisSystemProcess();
    await folder("nbdpull-kept-killed", { ...alive, start: "1" });
    // A power cut.
    const before = await folder("nbdpull-kept-before", { ...alive, boot: "another" });
    await utimes(before, YESTERDAY, YESTERDAY);
    await utimes(await folder("nbdpull-kept-unsaid"), YESTERDAY, YESTERDAY);
    const left = [
      await folder("nbdpull-kept-living", alive),
      await folder("nbdpull-kept-fresh1"),
      await folder("nbdpull-kept-others", { ...alive, start: "1", boot: "another" }),
      await folder("nbdpull-kept-a-longer-name", { ...alive, start: "1" }),
    ];
    await symlink(left[0] ?? "", join(parent, "nbdpull-kept-linked"));
    await keep();
    const names = [...left.map((path) => path.slice(parent.length + 1)), "nbdpull-kept-linked"];
    expect(await readdir(parent)).toEqual(names.sort());
    expect(await readdir(join(left[0] ?? "", "files"))).toEqual(["nvram.fd"]);
  });
});
