import { describe, expect, it } from "vitest";
import { nearestMachine } from "../../../src/backup/definition/nearest-machine.js";

const names = (text: string) =>
  text.split(" ").map((name) => ({ name, canonical: undefined, isDeprecated: name.startsWith("!") }));
const HOST = [
  ...names("pc-i440fx-2.0 pc-q35-2.9 pc-q35-2.10 pc-q35-7.2 pc-i440fx-7.2 microvm virt-7.2"),
  { name: "q35", canonical: "pc-q35-7.2", isDeprecated: false },
  { name: "pc-i440fx-1.5", canonical: undefined, isDeprecated: true },
];

describe("the nearest machine type", () => {
  it.each([
    ["pc-q35-9.2", "pc-q35-7.2", "the newest, if all are older"],
    ["pc-q35-2.4", "pc-q35-2.9", "the next newer, if it was dropped"],
    ["pc-q35-2.9.5", "pc-q35-2.10", "by numbers, and not by digits"],
    ["pc-i440fx-1.4", "pc-i440fx-2.0", "none that is deprecated, if there is another"],
    ["pc-q35-rhel9.4.0", "pc-q35-7.2", "the newest, of another distribution's"],
    ["pc-i440fx-jammy-hpb", "pc-i440fx-7.2", "the newest, of another distribution's"],
    ["virt-6.0", "virt-7.2", "of its own family"],
    ["pseries-7.2", undefined, "none of another family"],
    ["no-such-machine", undefined, "none where nothing is known of it"],
  ])("is, for %s, %s: %s", (wanted, found, _why) => {
    expect(nearestMachine(wanted, HOST)).toBe(found);
  });

  it("is one of the same distribution's, by its versions, where there are some", () => {
    const host = names("pc-q35-rhel8.6.0 pc-q35-rhel9.0.0 pc-q35-rhel9.4.0 pc-q35-9.1");
    expect(nearestMachine("pc-q35-rhel8.2.0", host)).toBe("pc-q35-rhel8.6.0");
    expect(nearestMachine("pc-q35-rhel9.2.0", host)).toBe("pc-q35-rhel9.4.0");
  });
});
