import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { choosePoint } from "../../../src/backup/repository/choose-point.js";
import { MemoryChain } from "../../support/memory-chain.js";

let chain: MemoryChain;
let newest: string;
beforeAll(async () => {
  chain = await MemoryChain.start(1024 * 1024);
  await chain.take();
  newest = (await chain.take()).manifest.id;
});
afterAll(async () => {
  await chain[Symbol.asyncDispose]();
});

const chosen = async (at: string): Promise<string> =>
  (await choosePoint(chain.repository, MemoryChain.domain, at)).id;

describe("a point in time", () => {
  it("is found by its day, and by the minute or second that is shown of it, though it was made a little later", async () => {
    const [older = "", newer = ""] = chain.points.map(({ id }) => id);
    const local = (time: string): string => new Date(time).toLocaleString("sv-SE");
    await chain.rewrite(older, { createdAt: "2026-11-20T10:32:16.500Z" });
    await chain.rewrite(newer, { createdAt: "2026-11-20T10:34:00.000Z" });
    for (const at of [
      local("2026-11-20T10:32:16.500Z"),
      local("2026-11-20T10:32:16.500Z").slice(0, 16),
      "2026-11-20T10:32:16Z",
      "2026-11-20T10:33Z",
    ]) {
      expect([at, await chosen(at)]).toEqual([at, older]);
    }
    const day = local("2026-11-20T10:32:16.500Z").slice(0, 10);
    expect(await chosen(day)).toBe(newer);
    expect(await chosen("2026-11-20T10:34:00.000Z")).toBe(newer);
    await expect(chosen("2026-11-20T10:32:16.499Z")).rejects.toMatchObject({ code: "E_NO_POINT" });
  });

  it("is found by the beginning of its id, if no other begins so", async () => {
    const [older = "", newer = ""] = chain.points.map(({ id }) => id);
    const shared = [...older].findIndex((character, i) => character !== newer[i]);
    expect(await chosen(newer.slice(0, Math.max(8, shared + 1)))).toBe(newer);
    await expect(chosen(newer.slice(0, 8))).rejects.toThrow(
      new RegExp(`2 points begin with .*${older}, ${newer}`),
    );
    await expect(chosen("19990101")).rejects.toMatchObject({ code: "E_NO_POINT" });
  });

  it.each([
    "2100-01-01",
    "2100-01-01T10:00",
    "2100-01-01T10:00:00",
    "2100-01-01T10:00:00.5",
    "2100-01-01T10:00:00Z",
    "2100-01-01T10:00:00.123Z",
    "2100-01-01T10:00+02:00",
    "2100-01-01 10:00",
    "2100-01-01 10:00:00",
  ])("may have a date, minutes or seconds, with or without a zone: %s", async (time) => {
    expect(await chosen(time)).toBe(newest);
  });

  it.each([
    "web 2027",
    "2026",
    "2100",
    "11/20/2100",
    "20 Nov 2100",
    "2100-13-01",
    "2100-02-30",
    "2100-01-01T25:00",
    "2100-01-01 or so",
    "tomorrow",
    "",
    " ",
  ])("is refused if it is not ISO 8601: %j", async (time) => {
    await expect(chosen(time)).rejects.toMatchObject({ code: "E_BAD_POINT" });
  });

  it.each(["1999-12-31", "20000101T000000.000Z"])(
    "is not found if every point is newer: %s",
    async (time) => {
      await expect(chosen(time)).rejects.toMatchObject({ code: "E_NO_POINT" });
    },
  );
});
