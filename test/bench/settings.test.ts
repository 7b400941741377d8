import { describe, expect, it } from "vitest";
import { HELP, settingsOf } from "../../bench/settings.js";

describe("the harness's command line", () => {
  it("has every option in its help", () => {
    const named = [...HELP.matchAll(/^ {2}--([a-z]+)/gm)].map(([, name = ""]) => name);
    expect(named).toEqual(["list", "only", "contenders", "runs", "minutes", "scale", "node", "json", "help"]);
    for (const name of named) {
      const value = ["list", "help"].includes(name) ? "" : "=1";
      expect(() => settingsOf([`--${name}${value}`, "--help"])).not.toThrow();
    }
    expect(settingsOf(["--help"])).toBe("help");
    expect(settingsOf(["--list"])).toBe("list");
  });

  it.each([
    ["--runs=0"],
    ["--runs=some"],
    ["--scale=2"],
    ["--minutes=0"],
    ["--only=nothing-of-that-name"],
    ["--unknown"],
    ["stray"],
  ])("is refused with %s", (argument) => {
    expect(() => settingsOf([argument])).toThrow();
  });

  it("gives a workload ten minutes unless told otherwise", () => {
    expect(settingsOf(["--only", "tls"])).toMatchObject({ limitMs: 600_000, runs: 7, scale: 1 });
    expect(settingsOf(["--only", "tls", "--minutes", "0.5"])).toMatchObject({ limitMs: 30_000 });
  });

  it("hands everything else over to another Node", () => {
    const args = ["--only", "tls,tcp", "--node", "/opt/node", "--list", "--runs=3"];
    expect(settingsOf(args)).toEqual({ node: "/opt/node", args: ["--only=tls,tcp", "--list", "--runs=3"] });
  });
});
