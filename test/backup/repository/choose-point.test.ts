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
  it.each([
    "2100-01-01",
    "2100-01-01T10:00",
    "2100-01-01T10:00:00",
    "2100-01-01T10:00:00.5",
    "2100-01-01T10:00:00Z",
    "2100-01-01T10:00:00.123Z",
    "2100-01-01T10:00+02:00",
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
