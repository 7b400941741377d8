/**
 * The attack: points that another user can forge, and a program that calls the library as root without a
 * look.
 */
import { chmod, chown, mkdir, readdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import {
  importImages,
  mendClock,
  prune,
  Repository,
  RestoredDefinition,
  type RestoredDefinitionOptions,
} from "../../src/backup/index.js";
import { repairPoints } from "../../src/backup/repair/repair.js";
import { ATTACKER, NO_ATTACKER } from "../support/attacker.js";
import { MemoryChain } from "../support/memory-chain.js";
import { describeUnless } from "../support/tools.js";

const DOMAIN = MemoryChain.domain;
const REFUSED = { code: "E_STRANGERS", message: expect.stringContaining("--trust-repository") };

let chain: MemoryChain;
let path: string;
let image: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  await chain.take({ full: true });
  await chain.take({ full: true });
  path = chain.repository.path;
  image = join(chain.folder, "image.raw");
  await writeFile(image, Buffer.alloc(1024 * 1024, 1));
});
afterEach(() => chain[Symbol.asyncDispose]());

const pruneTo = (repository: Repository): Promise<unknown> =>
  prune({
    ...{ repository, domain: DOMAIN, retention: { last: 1, daily: 0, weekly: 0, monthly: 0 } },
    ...{ dryRun: false, sync: false },
  });
const importTo = (repositoryPath: string, trustRepository?: boolean): Promise<unknown> =>
  importImages({
    images: [{ disk: "vda", path: image, format: "raw", formatAsked: true }],
    repositoryPath,
    trustRepository,
    domain: DOMAIN,
    needLibvirt: false,
    format: "qcow2",
    digests: "sha256",
    sync: false,
    tool: "test",
  });

describeUnless(NO_ATTACKER, "the library, called by root", () => {
  it("writes nothing to a repository that others can write to, and defines nothing from it", async () => {
    const point = join(path, DOMAIN, chain.points[0]?.id ?? "");
    await chown(join(point, "point.json"), ATTACKER, ATTACKER);
    const before = await readdir(join(path, DOMAIN));
    const repository = await Repository.open(path);
    await expect(pruneTo(repository)).rejects.toMatchObject(REFUSED);
    await expect(importTo(path)).rejects.toMatchObject(REFUSED);
    const ids = await repository.pointIds(DOMAIN);
    await expect(repairPoints({ repository, domain: DOMAIN, ids, dryRun: false })).rejects.toMatchObject(
      REFUSED,
    );
    await expect(mendClock(repository, DOMAIN, { dryRun: false })).rejects.toMatchObject(REFUSED);
    const definition = {
      ...{
        repository,
        domain: DOMAIN,
        point: chain.points[0],
        place: { file: join(chain.folder, "new.xml") },
      },
      ...{ disks: new Map(), force: false, sync: false },
    } as RestoredDefinitionOptions;
    await expect(RestoredDefinition.prepare(definition)).rejects.toMatchObject(REFUSED);
    expect(await readdir(join(path, DOMAIN))).toEqual(before);

    const trusted = await Repository.open(path, { trusted: true });
    await pruneTo(trusted);
    await importTo(path, true);
    expect((await trusted.pointIds(DOMAIN)).length).toBe(2);
  });

  it("makes no repository where another user can exchange it", async () => {
    const theirs = join(chain.folder, "theirs");
    await mkdir(theirs);
    await chown(theirs, ATTACKER, ATTACKER);
    await expect(importTo(join(theirs, "repo"))).rejects.toMatchObject(REFUSED);
    expect(await readdir(theirs)).toEqual([]);
  });

  it("takes the rights of others to an older repository away before it writes", async () => {
    const point = join(path, DOMAIN, chain.points[1]?.id ?? "");
    for (const folder of [join(path, DOMAIN), point]) await chmod(folder, 0o755);
    await chmod(join(point, "point.json"), 0o644);
    await pruneTo(await Repository.open(path));
    expect((await stat(point)).mode & 0o777).toBe(0o700);
    expect((await stat(join(point, "point.json"))).mode & 0o777).toBe(0o600);
  });
});
