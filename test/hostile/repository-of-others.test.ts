import { chmod, chown, readdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { findStranger } from "../../src/backup/repository/strangers.js";
import { attack, giveAway, NO_ATTACKER } from "../support/attacker.js";
import { MemoryChain } from "../support/memory-chain.js";
import { nbdpull, type Ran, runNbdpull } from "../support/nbdpull.js";
import { describeUnless } from "../support/tools.js";

const DOMAIN = MemoryChain.domain;

let chain: MemoryChain;
let repo: string;
let image: string;
beforeEach(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  await chain.take({ full: true });
  await chain.take({ full: true });
  repo = chain.repository.path;
  image = join(chain.folder, "image.raw");
  await writeFile(image, Buffer.alloc(1024 * 1024, 1));
});
afterEach(async () => {
  await chain[Symbol.asyncDispose]();
});

const prune = (...more: string[]): Promise<Ran> =>
  nbdpull("prune", repo, "--keep-last", "1", "--json", ...more);
const importImage = (...more: string[]): Promise<Ran> =>
  nbdpull("import", image, "--to", repo, "--domain", DOMAIN, "--disk", "vda", "--json", ...more);
const restore = (...more: string[]): Promise<Ran> =>
  nbdpull("restore", repo, "--to", join(chain.folder, "restored"), "--json", ...more);

const ways: [string, () => Promise<string>][] = [
  ["the repository belongs to somebody", () => chown(repo, 65_534, 65_534).then(() => repo)],
  ["everybody can write to the repository", () => chmod(repo, 0o777).then(() => repo)],
  [
    "the group can write to a domain's folder",
    () => chmod(join(repo, DOMAIN), 0o770).then(() => join(repo, DOMAIN)),
  ],
  [
    "a point's folder belongs to somebody",
    async () => {
      const point = chain.repository.pointFolder(DOMAIN, chain.points[0]?.id ?? "");
      await chown(point, 65_534, 65_534);
      return point;
    },
  ],
  [
    "a point's file belongs to somebody",
    async () => {
      const manifest = join(chain.repository.pointFolder(DOMAIN, chain.points[0]?.id ?? ""), "point.json");
      await chown(manifest, 65_534, 65_534);
      return manifest;
    },
  ],
  [
    "everybody can write to the repository's mark",
    () => chmod(join(repo, "nbdpull.json"), 0o666).then(() => join(repo, "nbdpull.json")),
  ],
  [
    "the folder above it is somebody's, who can put another repository there",
    () => chown(chain.folder, 65_534, 65_534).then(() => chain.folder),
  ],
  ["everybody can exchange it", () => chmod(chain.folder, 0o777).then(() => chain.folder)],
];

describeUnless(NO_ATTACKER, "a repository that others can write to", () => {
  it.each(ways)("is found, with the place where they can: %s", async (_, give) => {
    expect(await findStranger(repo, undefined)).toBeUndefined();
    const path = await give();
    for (const domains of [undefined, [DOMAIN]]) expect(await findStranger(repo, domains)).toContain(path);
  });

  // The place that is looked at last, and one outside of the repository: each command looks at all of them.
  it.each(ways.filter(([place]) => /point's file|folder above/.test(place)))(
    "is read with one warning, and root neither writes to it nor defines from it: %s",
    async (_, give) => {
      const path = await give();
      for (const args of [
        ["points", repo],
        ["verify", repo],
        ["prune", repo, "--keep-last", "1", "--dry-run"],
      ]) {
        const ran = await nbdpull(...args);
        expect([args[0], ran.code]).toEqual([args[0], 0]);
        expect(ran.stderr.match(/warning: /g)).toHaveLength(1);
        expect(ran.stderr).toContain(path);
      }
      const before = await readdir(join(repo, DOMAIN));
      for (const refused of [
        await prune(),
        await importImage(),
        await restore("--xml", join(chain.folder, "x.xml")),
      ]) {
        expect([refused.code, refused.json()]).toMatchObject([4, { error: { code: "E_STRANGERS" } }]);
        expect(refused.stderr).toContain(path);
        expect(refused.stderr).toContain("--trust-repository");
      }
      expect(await readdir(join(repo, DOMAIN))).toEqual(before);
      expect((await restore()).code).toBe(0);
      expect((await prune("--trust-repository")).code).toBe(0);
      expect((await importImage("--trust-repository")).code).toBe(0);
      expect(await readdir(join(repo, DOMAIN))).toHaveLength(2);
    },
  );

  it("is written to by an ordinary user, with the warning", async () => {
    await giveAway(repo, [chain.folder]);
    await chown(join(repo, "nbdpull.json"), 65_534, 65_534);
    await attack(`chmod 777 '${repo}'`);
    await chmod(image, 0o644);
    const as = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    const args = ["import", image, "--to", repo, "--domain", "theirs", "--disk", "vda"];
    const ran = await runNbdpull(args, { inside: as });
    expect([ran.code, ran.stderr]).toEqual([0, expect.stringContaining(`everybody can write to ${repo}`)]);
    expect((await stat(join(repo, "theirs"))).uid).toBe(65_534);
  });

  it("is none that root makes either where somebody else can exchange it", async () => {
    await chown(chain.folder, 65_534, 65_534);
    const fresh = join(chain.folder, "fresh");
    const ran = await nbdpull("import", image, "--to", fresh, "--domain", DOMAIN, "--disk", "vda", "--json");
    expect([ran.code, ran.json()]).toMatchObject([4, { error: { code: "E_STRANGERS" } }]);
    expect(await readdir(chain.folder)).not.toContain("fresh");
  });

  it("is no such repository because a folder above it is sticky, unless somebody's link leads to it", async () => {
    await chmod(chain.folder, 0o1777);
    const ran = await importImage();
    expect([ran.code, ran.stderr]).toEqual([0, expect.not.stringContaining("can change")]);
    const link = join(chain.folder, "link");
    await attack(`ln -s '${repo}' '${link}'`);
    const through = await nbdpull("prune", link, "--keep-last", "1");
    expect([through.code, through.stderr]).toEqual([4, expect.stringContaining(chain.folder)]);
  });

  it("is no such repository if it is root's own", async () => {
    const ran = await importImage();
    expect([ran.code, ran.stderr]).toEqual([0, expect.not.stringContaining("write to")]);
  });
});
