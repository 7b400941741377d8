import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatNbdUri, type NbdAddress, parseNbdUri } from "../../src/nbd/index.js";

const tcp = (host: string, port = 10_809) => ({ kind: "tcp", host, port }) as const;
const unix = (path: string) => ({ kind: "unix", path }) as const;

describe("an NBD URI", () => {
  it.each<[string, NbdAddress]>([
    ["nbd://host", { transport: tcp("host"), exportName: "" }],
    ["nbd://host/", { transport: tcp("host"), exportName: "" }],
    ["nbd://host:1234/disk", { transport: tcp("host", 1234), exportName: "disk" }],
    ["nbd://host:/disk", { transport: tcp("host"), exportName: "disk" }],
    ["NBD://host/disk", { transport: tcp("host"), exportName: "disk" }],
    ["nbd:///disk", { transport: tcp("localhost"), exportName: "disk" }],
    ["nbd://[::1]:1/disk", { transport: tcp("::1", 1), exportName: "disk" }],
    ["nbd://192.0.2.1//disk", { transport: tcp("192.0.2.1"), exportName: "/disk" }],
    ["nbd://host/a/../b", { transport: tcp("host"), exportName: "a/../b" }],
    ["nbd://host/a%2Fb%3F%C3%A4", { transport: tcp("host"), exportName: "a/b?ä" }],
    ["nbd://host/disk#fragment", { transport: tcp("host"), exportName: "disk" }],
    ["nbd+unix:///?socket=/run/s", { transport: unix("/run/s"), exportName: "" }],
    ["nbd+unix:///sda?socket=/run/a%20b+c", { transport: unix("/run/a b+c"), exportName: "sda" }],
    ["nbd+unix:///?socket=%00name", { transport: unix("\0name"), exportName: "" }],
    ["nbds://host", { transport: tcp("host"), exportName: "", tls: {} }],
    [
      "nbds://alice@host/?tls-psk-file=/keys",
      { transport: tcp("host"), exportName: "", tls: { username: "alice", pskFile: "/keys" } },
    ],
    [
      "nbds+unix:///?socket=s&tls-certificates=/pki&tls-hostname=h&tls-verify-peer=0",
      {
        transport: unix("s"),
        exportName: "",
        tls: { certificates: "/pki", hostname: "h", verifyPeer: false },
      },
    ],
    [
      "nbds://host?tls-verify-peer=1;tls-type=x509",
      { transport: tcp("host"), exportName: "", tls: { type: "x509", verifyPeer: true } },
    ],
    ["nbds://host?tls-type=psk", { transport: tcp("host"), exportName: "", tls: { type: "psk" } }],
    ["nbd://[fe80::1%25eth0]/", { transport: tcp("fe80::1%eth0"), exportName: "" }],
  ])("%s is understood", (text, address) => {
    expect(parseNbdUri(text)).toEqual(address);
  });

  it.each([
    ["", "no URI"],
    ["host:10809", "no URI"],
    ["nbd:unix:/run/s", "no URI"],
    ["http://host/", "scheme"],
    ["nbd+tcp://host/", "scheme"],
    ["nbd://host:99999/", "port"],
    ["nbd://host:abc/", "host and port"],
    ["nbd://host/%zz", "percent-encoded"],
    ["nbd://host/%ff", "percent-encoded"],
    ["nbd://host/a%00b", "NUL"],
    ["nbd://host/?socket=/run/s", "nbd+unix"],
    ["nbd+unix:///disk", "socket=PATH is missing"],
    ["nbd+unix:///disk?socket=", "socket=PATH is missing"],
    ["nbd+unix:///disk?socket=a%00b", "NUL"],
    ["nbd+unix://host/disk?socket=/run/s", "three slashes"],
    ["nbd://host/?sokcet=/run/s", "sokcet is unknown"],
    ["nbd+unix:///?socket=a&socket=b", "twice"],
    ["nbd://host/?tls-certificates=/pki", "nbds"],
    ["nbd://alice@host/", "nbds"],
    ["nbds://host/?tls-verify-peer=maybe", "0 or 1"],
    ["nbds://host/?tls-type=rot13", "x509 or psk"],
    ["nbds://host/?tls-psk-file=a&tls-certificates=b", "exclude"],
    ["nbds://host/?tls-type=x509&tls-psk-file=a", "exclude"],
    ["nbds://host/?tls-type=psk&tls-certificates=a", "exclude"],
    ["nbds://host/?tls-hostname=", "tls-hostname is empty"],
    ["nbds://host/?tls-hostname", "tls-hostname is empty"],
    ["nbds://host/?tls-hostname=good%00.evil", "tls-hostname is neither"],
    ["nbds://host/?tls-certificates=", "tls-certificates is empty"],
    ["nbds://host/?tls-psk-file=", "tls-psk-file is empty"],
    ["nbd://localhost%00.evil/", "the host is neither"],
    ["nbd://localhost%0a/", "the host is neither"],
    ["nbd://local%20host/", "the host is neither"],
    ["nbd://%3A%3A1/", "the host is neither"],
    ["nbd://[localhost]/", "brackets"],
    ["nbd://[127.0.0.1]/", "brackets"],
    ["nbd://[]/", "brackets"],
    ["nbd://[::1%00]/", "brackets"],
  ])("%j is refused: %s", (text, reason) => {
    expect(() => parseNbdUri(text)).toThrow(
      expect.objectContaining({ code: "NBD_URI_INVALID", message: expect.stringContaining(reason) }),
    );
  });

  it.each(["nbd+vsock://2:10809/disk", "nbds+vsock://2", "nbds://host/?tls-type=anon"])(
    "%s is valid, but not supported",
    (text) => {
      expect(() => parseNbdUri(text)).toThrow(expect.objectContaining({ code: "NBD_URI_UNSUPPORTED" }));
    },
  );

  it("survives formatting and parsing, with any content", () => {
    const name = fc.string({ unit: "binary", maxLength: 40 }).filter((text) => !text.includes("\0"));
    const solid = name.filter((text) => text !== "");
    const transport = fc.oneof(
      fc.record({
        kind: fc.constant("tcp" as const),
        host: fc.oneof(fc.domain(), fc.ipV4(), fc.ipV6()),
        port: fc.integer({ min: 1, max: 65_535 }),
      }),
      fc.record({
        kind: fc.constant("unix" as const),
        path: fc.oneof(
          solid,
          solid.map((text) => `\0${text}`),
        ),
      }),
    );
    const common = { username: solid, hostname: fc.oneof(fc.domain(), fc.ipV6()), verifyPeer: fc.boolean() };
    const tls = fc.oneof(
      fc.record({ ...common, type: fc.constant("x509" as const), certificates: solid }, { requiredKeys: [] }),
      fc.record({ ...common, type: fc.constant("psk" as const), pskFile: solid }, { requiredKeys: [] }),
    );
    const address = fc.record(
      { transport, exportName: name, tls },
      { requiredKeys: ["transport", "exportName"] },
    );
    fc.assert(
      fc.property(address, (given) => {
        expect(parseNbdUri(formatNbdUri(given))).toEqual(given);
      }),
    );
  });

  it("is either parsed or refused", () => {
    const fragments = fc.constantFrom(
      "nbd",
      "s",
      "+unix",
      "://",
      "/",
      "?",
      "&",
      "socket=",
      "%",
      "%00",
      "@",
      ":",
      "[",
      "]",
      "host",
      "#",
    );
    const anything = fc.oneof(
      fc.string({ unit: "binary" }),
      fc.array(fragments).map((list) => list.join("")),
    );
    fc.assert(
      fc.property(anything, (text) => {
        try {
          expect(parseNbdUri(text).transport.kind).toMatch(/^(?:tcp|unix)$/);
        } catch (error) {
          expect(error).toMatchObject({ name: "UriError" });
        }
      }),
    );
  });
});
