import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { anySignal } from "../../src/nbd/abort.js";

const root = join(import.meta.dirname, "../..");

function collectGarbage(): void {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
}

describe("a signal that follows several", () => {
  it("fires by a time-out that nobody else holds, whatever is collected before", async () => {
    const late = anySignal(AbortSignal.timeout(300), new AbortController().signal);
    const fired = new Promise((resolve) => late.addEventListener("abort", () => resolve("fired")));
    for (let turn = 0; turn < 5; turn += 1) {
      collectGarbage();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const given = new Promise((resolve) => setTimeout(resolve, 20_000, "never fired").unref());
    expect(await Promise.race([fired, given])).toBe("fired");
    expect(late.reason).toMatchObject({ name: "TimeoutError" });
  });

  it("fires by the first of them, at once if one has fired, and never without any", () => {
    const [first, second] = [new AbortController(), new AbortController()];
    const either = anySignal(first.signal, undefined, second.signal);
    second.abort("why");
    expect(either.reason).toBe("why");
    expect(anySignal(second.signal, first.signal).aborted).toBe(true);
    expect(anySignal(undefined).aborted).toBe(false);
  });

  it("is made nowhere else", () => {
    const files = ["src", "bin"].flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).map((name) =>
        join(folder, name),
      ),
    );
    const making = files.filter(
      (file) => /\.tsx?$/.test(file) && readFileSync(join(root, file), "utf8").includes("AbortSignal.any("),
    );
    expect(making).toEqual(["src/nbd/abort.ts"]);
  });
});
