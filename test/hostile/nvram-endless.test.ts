/** QEMU's user makes the NVRAM something that a copy never gets to the end of. */
import { readdir } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { attack, attackMeanwhile } from "../support/attacker.js";
import { KeptLab } from "../support/kept-lab.js";

const MiB = 1024 * 1024;

describe("an NVRAM without end", () => {
  it("is refused at once if it is huge, although it needs no space itself", async () => {
    await using lab = await KeptLab.start();
    await attack(`truncate -s 900G ${lab.nvram}`);
    const started = performance.now();
    expect(await lab.keep()).toMatchObject({
      kept: ["definition"],
      reasons: [expect.stringMatching(/^it has 966367641600 bytes/)],
    });
    // To read it would take minutes.
    expect(performance.now() - started).toBeLessThan(60_000);
  });

  it("stays sparse in the point if it is sparse", async () => {
    await using lab = await KeptLab.start();
    await attack(
      `truncate -s 60M ${lab.nvram}; printf x | dd of=${lab.nvram} bs=1M seek=30 conv=notrunc status=none`,
    );
    expect(await lab.keep()).toEqual({ kept: ["definition", "nvram"], reasons: [] });
    expect(await lab.allocated("nvram.fd")).toBeLessThan(MiB);
    expect((await lab.stored()).length).toBeGreaterThan(60 * MiB);
  });

  it("is given up when it grows beyond its bound while it is copied", async () => {
    await using lab = await KeptLab.start();
    await attack(`head -c 60M /dev/urandom > ${lab.nvram}`);
    await using _ = attackMeanwhile(`while :; do head -c 1M /dev/urandom >> ${lab.nvram}; done`);
    const { kept, reasons } = await lab.keep();
    expect({ kept, reasons }).toMatchObject({
      kept: ["definition"],
      reasons: [expect.stringContaining("more than 67108864 is not copied")],
    });
    expect(await readdir(lab.point)).toEqual(["domain.xml"]);
  });

  it.each(["nvram", "kernel"])(
    "is refused at once if a pipe or a device lies in its place (%s)",
    async (role) => {
      await using lab = await KeptLab.start();
      await attack(`mkfifo ${lab.nvram}`);
      expect(await lab.keep(role)).toEqual({ kept: ["definition"], reasons: ["it is no plain file"] });
      for (const device of ["/dev/zero", "/dev/tty", "/proc/self/fd"]) {
        expect(await lab.keepAt(device, role)).toEqual({
          kept: ["definition"],
          reasons: [expect.stringMatching(/no plain file|another user/)],
        });
      }
    },
  );
});
