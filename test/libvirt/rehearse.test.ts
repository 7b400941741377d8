/** A rehearsal: whether the guest of a point comes up, and that nothing stays of it. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { describeWithLibvirt, type Lab, stateOf, virsh } from "../support/libvirt-lab.js";
import { LiveLab } from "../support/live-lab.js";
import { nbdpull, type Ran } from "../support/nbdpull.js";

let live: LiveLab;
let lab: Lab;
let [repo, unstartable] = ["", ""];

await describeWithLibvirt("a guest that is started from a point", () => {
  beforeAll(async () => {
    live = await LiveLab.start();
    ({ lab, repo, unstartable } = live);
  });
  afterAll(async () => {
    await live?.[Symbol.asyncDispose]();
  });

  it("is rehearsed without cards, and nothing stays of it but what came of it, also after kill -9", async () => {
    const [work, told] = [await live.newFolder(), await live.newFolder()];
    const metrics = join(told, "nbdpull.prom");
    const rehearsal = (...more: readonly string[]): string[] => {
      const all = ["--work", work, "--metrics", metrics, "--json", ...more];
      return ["rehearse", repo, lab.domain, "--at", unstartable, ...all];
    };
    const inWork = async (): Promise<string[]> => (await readdir(work)).sort();
    const agent = await nbdpull(...rehearsal());
    expect([agent.code, agent.json()]).toMatchObject([4, { error: { code: "E_REHEARSAL" } }]);

    // What a killed one leaves is removed by the next.
    const killed = live.begin(rehearsal("--expect", "serial:never"));
    await expect.poll(inWork).toHaveLength(1);
    const [left = ""] = await inWork();
    live.endWith(left);
    await expect.poll(() => stateOf(left)).toBe("running (booted)");
    killed.kill("SIGKILL");
    await killed.ended;
    const up = await nbdpull(
      ...rehearsal("--expect", "serial:\\.\\.\\.", "--memory", "16M", "--pictures", told),
    );
    expect([up.code, up.stderr]).toEqual([0, ""]);
    expect(up.json()).toMatchObject([{ domain: lab.domain, point: unstartable, cameUp: true }]);
    // QEMU makes a PNG since 7.1, and a PPM before.
    const [picture = ""] = (await readdir(told)).filter((each) => each.startsWith(`${lab.domain}.p`));
    const signature = picture.endsWith(".png") ? "\x89PNG" : "P6\n";
    expect((await readFile(join(told, picture))).toString("latin1").startsWith(signature)).toBe(true);
    expect([await stateOf(left), await inWork()]).toEqual(["unknown", []]);
    expect(await readFile(metrics, "utf8")).toMatch(/nbdpull_rehearsal_success\{.*\} 1/);
    expect(await rehearsed()).toMatchObject({ cameUp: true, sign: "serial \\.\\.\\." });

    let silent = await nbdpull(...rehearsal("--expect", "serial:never", "--within", "1"));
    // A slow machine may not have come to the guest within a second.
    for (const within of ["5", "25"]) {
      if (saidBy(silent) === "")
        silent = await nbdpull(...rehearsal("--expect", "serial:never", "--within", within));
    }
    expect([silent.code, silent.json()]).toMatchObject([
      3,
      [{ cameUp: false, said: [expect.stringContaining(".")] }],
    ]);
    const refused = await nbdpull(...rehearsal("--expect", "serial:never", "--network", "nbdpull-none"));
    expect([refused.code, refused.json()]).toMatchObject([4, { error: { code: "E_REHEARSAL" } }]);
    expect(refused.stderr).toMatch(/nbdpull-none.*net-list/);
    expect(await inWork()).toEqual([]);
    // Those of tests beside this one come and go.
    for (const name of (await virsh("list", "--all", "--name")).split("\n")) {
      if (!name.startsWith("nbdpull-rehearsal")) continue;
      expect(await virsh("dumpxml", name).catch(() => "")).not.toContain(work);
    }
    expect(await readFile(metrics, "utf8")).toMatch(/nbdpull_rehearsal_success\{.*\} 0/);
    expect(await rehearsed()).toMatchObject({
      cameUp: false,
      reason: expect.stringContaining("did not say"),
    });
    // The note is no part of what is proven.
    expect((await nbdpull("verify", repo, lab.domain, "--at", unstartable)).code).toBe(0);
  });

  /** What a guest has said that was not taken for up. */
  function saidBy(ran: Ran): string {
    const [told] = ran.json() as { said?: readonly string[] }[];
    return told?.said?.join("") ?? "";
  }

  async function rehearsed(): Promise<unknown> {
    const all = (await nbdpull("points", repo, lab.domain, "--json")).json() as {
      id: string;
      rehearsed: unknown;
    }[];
    return all.find(({ id }) => id === unstartable)?.rehearsed;
  }
});
