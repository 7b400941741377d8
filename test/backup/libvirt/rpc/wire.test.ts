/** The codec of libvirt's protocol: bytes in, values out, and nothing is believed. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeError } from "../../../../src/backup/libvirt/rpc/errors.js";
import { decodeEvent } from "../../../../src/backup/libvirt/rpc/events.js";
import {
  encodePacket,
  MAX_PACKET,
  type Packet,
  PacketSplitter,
  PROGRAM,
} from "../../../../src/backup/libvirt/rpc/packets.js";
import * as procedures from "../../../../src/backup/libvirt/rpc/procedures.js";
import { typedParams } from "../../../../src/backup/libvirt/rpc/typed-params.js";
import { readDomain } from "../../../../src/backup/libvirt/rpc/wire-objects.js";
import { UnreadableError, XdrReader, XdrWriter } from "../../../../src/backup/libvirt/rpc/xdr.js";
import { refusal, UUID } from "../../../support/scripted-libvirt.js";

const DOMAIN = { name: "lab", uuid: UUID, id: 7 };
/** The numbers of all events that are read. */
const EVENTS = Array.from({ length: 600 }, (_, number) => number).filter(isEvent);

function isEvent(number: number): boolean {
  try {
    return decodeEvent(number, new XdrReader(Buffer.alloc(0))) !== undefined;
  } catch {
    return true;
  }
}

/** What libvirt 9.0 says of a domain that is off, as it came. */
const RECORDED_ERROR = encodePacket({
  ...{ program: 0x20008086, procedure: 422, type: 1, serial: 5, status: 1 },
  payload: refusal(55, "Requested operation is not valid: domain is not running").finish(),
});

function packets(bytes: Buffer, ...cuts: readonly number[]): Packet[] {
  const splitter = new PacketSplitter();
  const found: Packet[] = [];
  let from = 0;
  for (const cut of [...cuts, bytes.length]) {
    found.push(...splitter.push(bytes.subarray(from, cut)));
    from = cut;
  }
  return found;
}

describe("XDR", () => {
  it("is what RFC 4506 says", () => {
    const out = new XdrWriter().int(-1).string("abcde").optionalString(undefined).optionalString("x");
    expect(
      out
        .strings(["", "yz"])
        .fixed(Buffer.from([9]))
        .finish()
        .toString("hex"),
    ).toBe(
      `ffffffff 00000005 6162636465000000 00000000 00000001 00000001 78000000 00000002 00000000 00000002 797a0000 09000000`.replaceAll(
        " ",
        "",
      ),
    );
  });

  it("gives back every text and number that was written, of any length", () => {
    const texts = fc.array(fc.string({ unit: "binary", maxLength: 700 }));
    fc.assert(
      fc.property(texts, fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }), (strings, number) => {
        const reader = new XdrReader(new XdrWriter().strings(strings).int(number).finish());
        const read = reader.list(() => reader.string());
        expect(read).toEqual(strings.map((text) => Buffer.from(text).toString()));
        expect(reader.int()).toBe(number);
        reader.end();
      }),
    );
  });

  it.each<[string, (reader: XdrReader) => unknown, string]>([
    ["a text longer than the message", (reader) => reader.string(), "00000009 61626364"],
    ["a text of 4 GiB", (reader) => reader.string(), "ffffffff 61626364"],
    ["a list longer than the message", (reader) => reader.list(() => reader.int()), "00000003 00000001"],
    ["a list of four thousand million", (reader) => reader.list(() => reader.int()), "ffffffff 00000001"],
    ["neither here nor there", (reader) => reader.optionalString(), "00000002 00000000"],
    ["half a number", (reader) => reader.bigint(), "00000000"],
    ["a size beyond what is exact", (reader) => reader.size("a size"), "00200000 00000000"],
    ["something after the end", (reader) => reader.end(), "00000000"],
    ["a parameter of no type", (reader) => typedParams(reader), "00000001 00000000 00000008 00000000"],
  ])("refuses %s", (_, read, hex) => {
    const reader = new XdrReader(Buffer.from(hex.replaceAll(" ", ""), "hex"));
    expect(() => read(reader)).toThrow(UnreadableError);
  });

  it("reads parameters of every type, and leaves out numbers that are not exact", () => {
    const hex = [
      "00000008",
      "00000001 61000000 00000001 ffffffff",
      "00000001 62000000 00000002 ffffffff",
      "00000001 63000000 00000003 ffffffff fffffffe",
      "00000001 64000000 00000004 00000001 00000000",
      "00000001 65000000 00000004 ffffffff ffffffff",
      "00000001 66000000 00000005 3ff80000 00000000",
      "00000001 67000000 00000006 00000001",
      "00000001 68000000 00000007 00000002 6f6b0000",
    ];
    const params = typedParams(new XdrReader(Buffer.from(hex.join("").replaceAll(" ", ""), "hex")));
    expect(Object.fromEntries(params)).toEqual({
      ...{ a: -1, b: 2 ** 32 - 1, c: -2, d: 2 ** 32, f: 1.5, g: true, h: "ok" },
    });
  });
});

describe("a packet", () => {
  const two = Buffer.concat([
    RECORDED_ERROR,
    encodePacket({
      program: 1,
      procedure: 2,
      type: 3,
      serial: 4,
      status: 5,
      payload: Buffer.from("12345678"),
    }),
  ]);

  it("is the same wherever its bytes were split", () => {
    const whole = packets(two);
    expect(whole).toMatchObject([
      { procedure: 422, serial: 5, status: 1 },
      { procedure: 2, serial: 4 },
    ]);
    expect(whole[1]?.payload.toString()).toBe("12345678");
    for (let cut = 0; cut <= two.length; cut += 1) expect(packets(two, cut)).toEqual(whole);
    expect(packets(two, ...Array.from({ length: two.length }, (_, at) => at))).toEqual(whole);
  });

  it.each([0, 4, 27, MAX_PACKET + 1, 0xffffffff])("is refused if its length is %i", (length) => {
    const bytes = Buffer.from(two);
    bytes.writeUInt32BE(length);
    expect(() => packets(bytes)).toThrow(UnreadableError);
  });

  it("takes no memory for bytes that did not come", () => {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(MAX_PACKET);
    const before = process.memoryUsage().arrayBuffers;
    for (let i = 0; i < 100; i += 1) expect(new PacketSplitter().push(Buffer.from(head))).toEqual([]);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(MAX_PACKET);
  });

  it("is refused in another version of its program", () => {
    const bytes = Buffer.from(two);
    bytes.writeUInt32BE(2, 8);
    expect(() => packets(bytes)).toThrow(UnreadableError);
  });
});

describe("any bytes at all", () => {
  const anyBytes = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));

  it("are packets or are refused, and nothing else happens", () => {
    fc.assert(fc.property(anyBytes, fc.nat(300), (bytes, cut) => expectReadable(() => packets(bytes, cut))));
  });

  it("are an answer, an error or an event, or are refused, and nothing else happens", () => {
    const all = Object.values(procedures).filter((each) => typeof each === "object");
    expect(all.length).toBeGreaterThan(25);
    fc.assert(
      fc.property(anyBytes, (bytes) => {
        for (const { decode } of all) expectReadable(() => decode(new XdrReader(bytes)));
        expectReadable(() => decodeError(new XdrReader(bytes)));
        for (const number of EVENTS) expectReadable(() => decodeEvent(number, new XdrReader(bytes)));
      }),
    );
  });

  it("that were an error before one byte changed are an error still, or are refused", () => {
    const good = refusal(42, "Domain not found").finish();
    const byte = fc.nat(255);
    fc.assert(
      fc.property(fc.nat(good.length - 1), byte, (at, value) => {
        const bytes = Buffer.from(good);
        bytes[at] = value;
        expectReadable(() => decodeError(new XdrReader(bytes)));
      }),
    );
  });

  it("that were an event before one byte changed are an event still, or are refused", () => {
    const domain = (): XdrWriter => {
      const uuid = Buffer.from(UUID.replaceAll("-", ""), "hex");
      return new XdrWriter().int(1).string("lab").fixed(uuid).int(7);
    };
    const good: Readonly<Record<number, XdrWriter>> = {
      318: domain().int(5).int(1),
      339: domain().string("vda").int(2).int(3),
      363: domain().int(1).string("operation").int(1).int(6),
      385: domain().string("vda[5]").optionalString("/scratch").size(4096).size(512),
    };
    expect(Object.keys(good).map(Number)).toEqual(EVENTS);
    for (const number of EVENTS) {
      const whole = good[number]?.finish() ?? Buffer.alloc(0);
      const reader = new XdrReader(whole);
      expect(decodeEvent(number, reader)).toMatchObject({ domain: DOMAIN });
      reader.end();
      fc.assert(
        fc.property(fc.nat(whole.length - 1), fc.nat(255), (at, value) => {
          const bytes = Buffer.from(whole);
          bytes[at] = value;
          expectReadable(() => decodeEvent(number, new XdrReader(bytes)));
        }),
      );
      for (let length = 0; length < whole.length; length += 1) {
        const cut = new XdrReader(whole.subarray(0, length));
        expect(() => decodeEvent(number, cut)).toThrow(UnreadableError);
      }
    }
  });

  function expectReadable(work: () => unknown): void {
    try {
      work();
    } catch (error) {
      expect(error).toBeInstanceOf(UnreadableError);
    }
  }
});

describe("the table of procedures", () => {
  const all = Object.entries(procedures).flatMap(([name, each]) =>
    typeof each === "object" ? [{ constant: name, ...each }] : [],
  );

  it("calls each one by its name in remote_protocol.x, and has no number twice", () => {
    for (const { constant, name } of all) expect(constant).toBe(name);
    expect(new Set(all.map(({ number }) => number)).size).toBe(all.length);
  });

  it.each(["procedures.ts", "disk-procedures.ts"])("has them in the order of their numbers in %s", (file) => {
    const path = new URL(`../../../../src/backup/libvirt/rpc/${file}`, import.meta.url);
    const names = [...readFileSync(path, "utf8").matchAll(/^export const (\w+)/gm)].map(([, name]) => name);
    const places = names.map((name) => {
      const { program = PROGRAM.remote, number } = all.find(({ constant }) => constant === name) ?? {};
      return [program, number];
    });
    expect(places.length).toBeGreaterThan(10);
    expect(places).toEqual(places.toSorted(([a = 0, b = 0], [c = 0, d = 0]) => a - c || b - d));
  });

  it("repeats what asks, and never what acts", () => {
    const acting = all.filter(({ repeatable }) => !repeatable).map(({ name }) => name);
    expect(acting.sort()).toEqual(
      [
        ...["CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY", "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY"],
        ...[
          "DOMAIN_ABORT_JOB",
          "DOMAIN_AGENT_COMMAND",
          "DOMAIN_BACKUP_BEGIN",
          "DOMAIN_CHECKPOINT_CREATE_XML",
        ],
        ...[
          "DOMAIN_CHECKPOINT_DELETE",
          "DOMAIN_DEFINE_XML_FLAGS",
          "DOMAIN_FSFREEZE",
          "DOMAIN_FSTHAW",
          "DOMAIN_SET_BLOCK_THRESHOLD",
          "DOMAIN_UNDEFINE_FLAGS",
        ],
        ...["DOMAIN_BLOCK_COPY", "DOMAIN_BLOCK_JOB_ABORT"],
        ...["DOMAIN_BLOCK_PULL", "DOMAIN_CREATE_WITH_FLAGS", "DOMAIN_DESTROY_FLAGS", "DOMAIN_RESUME"],
        // No change, but a stream that comes only once.
        "DOMAIN_SCREENSHOT",
      ].sort(),
    );
  });

  it("writes the bandwidth of a copy as a typed parameter, and none as an empty list", () => {
    const written = (bandwidth: number | undefined): string => {
      const out = new XdrWriter();
      const args = { domain: DOMAIN, path: "vda", xml: "<d/>", bandwidth, flags: 7 };
      procedures.DOMAIN_BLOCK_COPY.encode(out, args);
      return out.finish().toString("hex").slice(56);
    };
    const before = "000000037664610000000004" + "3c642f3e";
    expect(written(undefined)).toBe(`${before}0000000000000007`);
    const name = `00000009${Buffer.from("bandwidth").toString("hex")}000000`;
    expect(written(65536)).toBe(`${before}00000001${name}00000004000000000001000000000007`);
  });

  it("writes a domain as libvirt reads it", () => {
    const out = new XdrWriter();
    procedures.DOMAIN_GET_XML_DESC.encode(out, { domain: DOMAIN, flags: 2 });
    const uuid = UUID.replaceAll("-", "");
    expect(out.finish().toString("hex")).toBe(`000000036c616200${uuid}0000000700000002`);
    expect(readDomain(new XdrReader(out.finish()))).toEqual(DOMAIN);
  });
});
