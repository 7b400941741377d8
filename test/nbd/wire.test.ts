import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { quote } from "../../src/nbd/errors.js";
import { decodeText, encodeName, readUint64, viewOf, writeUint64 } from "../../src/nbd/wire/bytes.js";
import { COMMAND, INFO, OPTION } from "../../src/nbd/wire/constants.js";
import { encodeGo, encodeMetaQueries, encodeOption } from "../../src/nbd/wire/options.js";
import { commandName, encodeRequest, RequestBatch } from "../../src/nbd/wire/requests.js";

describe("64-bit numbers", () => {
  it("survive writing and reading, up to 2^53 - 1", () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (value) => {
        const bytes = new Uint8Array(12);
        writeUint64(viewOf(bytes), 3, value);
        expect(viewOf(bytes).getBigUint64(3)).toBe(BigInt(value));
        expect(readUint64(viewOf(bytes), 3, "it")).toBe(value);
      }),
    );
  });

  it("are never rounded: larger ones are refused by name", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }), (value) => {
        const bytes = new Uint8Array(8);
        viewOf(bytes).setBigUint64(0, value);
        expect(() => readUint64(viewOf(bytes), 0, "a test value")).toThrow(
          expect.objectContaining({
            code: "NBD_NUMBER_TOO_LARGE",
            message: expect.stringMatching(`${value} as a test value`),
          }),
        );
      }),
    );
  });
});

describe("names", () => {
  it("keep a byte order mark, which makes a different name", () => {
    expect(decodeText(encodeName("\ufeffdisk", "it"))).toBe("\ufeffdisk");
  });

  it("are UTF-8 without NUL, of at most 4096 bytes", () => {
    expect(decodeText(encodeName("näme ☃", "it"))).toBe("näme ☃");
    expect(encodeName("ä".repeat(2048), "it")).toHaveLength(4096);
    for (const bad of ["\0", "ä".repeat(2049)]) {
      expect(() => encodeName(bad, "it")).toThrow(expect.objectContaining({ code: "NBD_ARGUMENT" }));
    }
  });

  it("of a peer are printed without terminal control characters", () => {
    expect(quote('a\u001b[2J\n\u202e"b')).toBe('"a\\u{1b}[2J\\u{a}\\u{202e}"b"');
  });
});

describe("requests", () => {
  const request = {
    command: COMMAND.READ,
    flags: 4,
    cookie: 2 ** 40 + 7,
    offset: 2 ** 33 + 512,
    length: 4096,
  };

  it("are 28 bytes", () => {
    expect(Buffer.from(encodeRequest("structured", request)).toString("hex")).toBe(
      ["25609513", "0004", "0000", "0000010000000007", "0000000200000200", "00001000"].join(""),
    );
    expect(encodeRequest("simple", request)).toEqual(encodeRequest("structured", request));
  });

  it("are 32 bytes with extended headers", () => {
    const wide = { ...request, length: 2 ** 34 };
    expect(Buffer.from(encodeRequest("extended", wide)).toString("hex")).toBe(
      ["21e41c71", "0004", "0000", "0000010000000007", "0000000200000200", "0000000400000000"].join(""),
    );
  });

  it.each(["structured", "extended"] as const)("lie one behind the other in a %s message", (protocol) => {
    const batch = new RequestBatch(protocol, 2);
    const next = { ...request, cookie: 9, offset: 0 };
    for (let round = 0; round < 2; round += 1) {
      expect(batch.isEmpty).toBe(true);
      batch.add(request);
      expect([batch.isEmpty, batch.isFull]).toEqual([false, false]);
      batch.add(next);
      expect(batch.isFull).toBe(true);
      const parts = [encodeRequest(protocol, request), encodeRequest(protocol, next)];
      expect(Buffer.from(batch.take()).equals(Buffer.concat(parts))).toBe(true);
    }
  });

  it("have names for messages", () => {
    expect(Object.values(COMMAND).map(commandName)).toEqual([
      ...["read", "write", "disc", "flush", "trim", "cache", "write zeroes", "block status"],
    ]);
    expect(commandName(99)).toBe("command 99");
  });
});

describe("options", () => {
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

  it("contain a magic, their number and their data", () => {
    expect(hex(encodeOption(OPTION.LIST))).toBe(`${hex(Buffer.from("IHAVEOPT"))}0000000300000000`);
    expect(hex(encodeOption(OPTION.GO, Buffer.from("ab")))).toBe(
      `${hex(Buffer.from("IHAVEOPT"))}00000007000000026162`,
    );
  });

  it("name an export and the requested infos", () => {
    expect(hex(encodeGo("ab", [INFO.BLOCK_SIZE, INFO.NAME]))).toBe("0000000261620002" + "00030001");
    expect(hex(encodeGo("", []))).toBe("00000000" + "0000");
  });

  it("name an export and meta contexts", () => {
    expect(hex(encodeMetaQueries("a", ["b:c", "d:"]))).toBe(
      ["00000001", "61", "00000002", "00000003", "623a63", "00000002", "643a"].join(""),
    );
  });
});
