/**
 * The attack: a mebibyte of blanks in what another program says, for an expression that looks at each twice.
 */
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { faultsOf } from "../../src/backup/base/json.js";
import { oneLine } from "../../src/backup/base/one-line.js";
import { refusedByTool } from "../../src/backup/guest/qemu-img.js";
import { ScriptError, Ssh } from "../../src/backup/host/ssh.js";
import { parseClientConfig } from "../../src/backup/libvirt/connection-uri.js";
import { parseDomain } from "../../src/backup/libvirt/documents/domain-xml.js";
import { formatTree, parseTree } from "../../src/backup/libvirt/documents/xml-tree.js";
import { failure } from "../../src/backup/libvirt/libvirt-errors.js";
import { decodeError } from "../../src/backup/libvirt/rpc/errors.js";
import { DOMAIN_FSFREEZE } from "../../src/backup/libvirt/rpc/procedures.js";
import { XdrReader } from "../../src/backup/libvirt/rpc/xdr.js";
import { processorMs } from "../support/processor-time.js";
import { refusal } from "../support/scripted-libvirt.js";

const MIB = 1024 * 1024;
/** What a loaded machine may take for a mebibyte; an expression that is quadratic takes minutes. */
const MOST_MS = 8000;

const FORMS: readonly (readonly [string, string])[] = [
  ["blanks", " ".repeat(MIB)],
  ["line ends", "\n".repeat(MIB)],
  ["blanks in words", `x${" ".repeat(MIB)}y`],
  ["line ends in words", `x${"\n".repeat(MIB)}y`],
  ["the beginning of what is looked for", "'guest-fsfreeze-freeze': object-add' ".repeat(MIB / 32)],
];

const ssh = new Ssh({ host: "hv1", settings: [] });
const READERS: readonly (readonly [string, (text: string) => unknown])[] = [
  ["a line of a message", (text) => oneLine(text)],
  ["ssh's words", (text) => ssh.failure({ stderr: text }).message],
  ["a script's words", (text) => new ScriptError("hv1", 1, text).message],
  ["qemu-img's words", (text) => refusedByTool("qemu-img", "/a", { stderr: text }).message],
  [
    "faults of a document",
    (text) => faultsOf(z.object({ a: z.literal("b") }).safeParse({ [text]: 1 }).error as never),
  ],
  ["libvirt.conf", (text) => parseClientConfig(text)],
  [
    "libvirt's and an agent's words",
    (text) => {
      const error = decodeError(new XdrReader(refusal(1, text).finish()));
      return failure(error, { procedure: DOMAIN_FSFREEZE, about: "web", uri: "qemu:///system" });
    },
  ],
  [
    "an XML document",
    (text) =>
      formatTree(parseTree(`<domain${text.replaceAll(/[^\s]/g, "")}><a>${text}</a></domain>`, "domain")),
  ],
  [
    "a domain's definition",
    (text) => {
      try {
        return parseDomain(
          `<domain><name>${text}</name><devices><disk type='file'>${text}</disk></devices></domain>`,
        );
      } catch (error) {
        return error;
      }
    },
  ],
];

describe("a mebibyte of blanks", () => {
  it.each(READERS)("is read in a moment as %s", (_, read) => {
    for (const [form, text] of FORMS) {
      const begun = processorMs();
      read(text);
      expect(processorMs() - begun, form).toBeLessThan(MOST_MS);
    }
  });

  it("leaves the end of what was said, in one line", () => {
    expect(oneLine(` a \n\n b\t\n`)).toBe("a; b");
    expect(oneLine(`${"x".repeat(MIB)}\nwhy`)).toMatch(/^…; x+; why$/);
    expect(oneLine(`${"x".repeat(MIB)}\nwhy`).length).toBeLessThan(5000);
  });
});
