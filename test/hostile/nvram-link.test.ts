/** QEMU's user puts a link to a file of root's where libvirt says that the NVRAM is. */
import { describe, expect, it } from "vitest";
import { attack, attackMeanwhile } from "../support/attacker.js";
import { KeptLab, SECRET } from "../support/kept-lab.js";

describe("an NVRAM that QEMU's user replaced", () => {
  it("is not kept if it is a link, and what the link leads to is not read", async () => {
    await using lab = await KeptLab.start();
    await attack(`ln -s ${lab.secret} ${lab.nvram}`);
    expect(await lab.keep()).toEqual({
      kept: ["definition"],
      reasons: ["web_VARS.fd is a link in a folder that another user can change"],
    });
    expect(await lab.stored()).not.toContain(SECRET);
  });

  it("is not kept if a folder on the way is a link", async () => {
    await using lab = await KeptLab.start();
    await attack(`mkdir ${lab.theirs}/more && ln -s ${lab.folder} ${lab.theirs}/more/up`);
    const { kept, reasons } = await lab.keepAt(`${lab.theirs}/more/up/shadow`);
    expect({ kept, reasons }).toEqual({
      kept: ["definition"],
      reasons: ["up is a link in a folder that another user can change"],
    });
    expect(await lab.stored()).not.toContain(SECRET);
  });

  it("is not kept if it is another name of a file, or a file of somebody else", async () => {
    await using lab = await KeptLab.start();
    // The kernel refuses such a link to a user without rights unless protected_hardlinks is off.
    await lab.hardLink();
    expect(await lab.keep()).toMatchObject({
      kept: ["definition"],
      reasons: [expect.stringContaining("hard link")],
    });
    expect(await lab.stored()).not.toContain(SECRET);
    await lab.giveTo(1234);
    expect(await lab.keep()).toMatchObject({
      kept: ["definition"],
      reasons: [expect.stringContaining("the user 1234")],
    });
  });

  it("never becomes a file of root's, however often it changes places with a link while it is opened", async () => {
    await using lab = await KeptLab.start();
    const { nvram, secret } = lab;
    await attack(`echo variables > ${nvram}`);
    const swapping = `while :; do ln -sfn ${secret} ${nvram}.l; mv -fT ${nvram}.l ${nvram}; echo variables > ${nvram}.f; mv -fT ${nvram}.f ${nvram}; done`;
    await using _ = attackMeanwhile(swapping);
    const outcomes = new Set<string>();
    const until = Date.now() + 60_000;
    while (Date.now() < until && (outcomes.size < 2 || Date.now() < until - 55_000)) {
      const { kept } = await lab.keep();
      outcomes.add(kept.join());
      expect(await lab.stored()).not.toContain(SECRET);
    }
    expect([...outcomes].sort()).toEqual(["definition", "definition,nvram"]);
  });

  it("is kept if it is a plain file of QEMU's user or of root, behind a link of root's too", async () => {
    await using lab = await KeptLab.start();
    await attack(`echo variables > ${lab.nvram}`);
    expect(await lab.keep()).toEqual({ kept: ["definition", "nvram"], reasons: [] });
    await lab.giveTo(0);
    expect(await lab.keep()).toEqual({ kept: ["definition", "nvram"], reasons: [] });
    const { kept } = await lab.keepAt(await lab.behindLinkOfRoots());
    expect(kept).toEqual(["definition", "nvram"]);
    expect(await lab.stored()).toContain("variables");
  });
});
