import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { noteBeside } from "../../../src/backup/live/beside-point.js";
import { PointView } from "../../../src/backup/serve/point-view.js";
import { MemoryChain } from "../../support/memory-chain.js";

it("tells that points were pruned before the note was there, so that no guest begins on them", async () => {
  await using chain = await MemoryChain.start(1024 * 1024);
  await chain.take();
  await chain.take({ full: true });
  const { repository } = chain;
  const { domain } = MemoryChain;
  await using server = await PointView.open({ repository, domain, at: "latest" });
  const [uuid, point] = ["f3f0a8b3-2e63-4a1c-9f57-0d5f6a1c2b3d", server.point.id];
  const warnings: string[] = [];
  const note = async (hasRun: boolean): Promise<void> =>
    await noteBeside(
      { repository, domain, onEvent: ({ message }) => void warnings.push(message) },
      { point, domain: { uuid, name: "restored" } },
      { place: chain.folder, server, hasRun },
    );
  await note(false);
  const folder = join(repository.path, domain);
  expect(await readdir(join(folder, point))).toContain(`.live.${uuid}.json`);
  // As a prune does that has not seen the reader.
  for (const name of await readdir(folder)) {
    if (name !== point) await rm(join(folder, name), { recursive: true });
  }
  await expect(note(false)).rejects.toMatchObject({ code: "E_PRUNED_MEANWHILE" });
  // One that goes on leaves its note.
  await expect(note(true)).rejects.toMatchObject({
    code: "E_PRUNED_MEANWHILE",
    message: expect.stringContaining(`.live.${uuid}.json beside point ${point}`),
  });
  expect(warnings).toEqual([]);
});
