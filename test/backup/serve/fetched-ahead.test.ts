import { expect, it } from "vitest";
import { FetchedAhead } from "../../../src/backup/serve/fetched-ahead.js";

it("keeps nothing once the server is closed, though it was fetched before", async () => {
  const ahead = new FetchedAhead(1024);
  const closed = new AbortController();
  const clusters = ["one", "two"].map((key) => ({ key, length: 16 }));
  const fetches = [() => ahead.fetch(clusters, async (target) => void target.fill("x"))];
  await ahead.run(fetches.values(), closed.signal);
  expect(await ahead.take("one")).toEqual(Buffer.alloc(16, "x"));
  expect(ahead.isOver).toBe(false);
  closed.abort();
  expect(ahead.isOver).toBe(true);
  expect(ahead.take("two")).toBeUndefined();
});
