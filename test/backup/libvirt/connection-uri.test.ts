import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { parseClientConfig, resolveConnectionUri } from "../../../src/backup/libvirt/connection-uri.js";
import { parseConnectionUri } from "../../../src/backup/libvirt/hypervisor.js";

const CONF = `
# uri_aliases = [ "old=qemu:///nowhere" ]
uri_aliases = [
  "hail=qemu+ssh://root@hail.cloud.example.com/system",
  # "sleet=qemu:///no",
  'snow=qemu+tls://snow.example.com/system'
]
#uri_default = "xen:///system"
uri_default = "hail"
`;

describe("the connection URI", () => {
  afterEach(() => vi.unstubAllEnvs());

  it("is found by its alias in libvirt.conf", () => {
    const { aliases, default: chosen } = parseClientConfig(CONF);
    expect(Object.fromEntries(aliases)).toEqual({
      hail: "qemu+ssh://root@hail.cloud.example.com/system",
      snow: "qemu+tls://snow.example.com/system",
    });
    expect(chosen).toBe("hail");
    expect(parseClientConfig("")).toEqual({ aliases: new Map(), default: undefined });
  });

  it("is the one asked for, or the environment's, or the user's default, or the usual one", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-uri-"));
    const user = vi.spyOn(process, "geteuid").mockReturnValue(1000);
    try {
      vi.stubEnv("XDG_CONFIG_HOME", folder);
      vi.stubEnv("LIBVIRT_DEFAULT_URI", undefined);
      expect(await resolveConnectionUri(undefined)).toBe("qemu:///session");
      await mkdir(join(folder, "libvirt"));
      await writeFile(join(folder, "libvirt", "libvirt.conf"), CONF);
      expect(await resolveConnectionUri(undefined)).toBe("qemu+ssh://root@hail.cloud.example.com/system");
      vi.stubEnv("LIBVIRT_DEFAULT_URI", "snow");
      expect(await resolveConnectionUri(undefined)).toBe("qemu+tls://snow.example.com/system");
      expect(await resolveConnectionUri("hail")).toBe("qemu+ssh://root@hail.cloud.example.com/system");
      expect(await resolveConnectionUri("qemu:///system")).toBe("qemu:///system");
    } finally {
      user.mockRestore();
      await rm(folder, { recursive: true });
    }
  });
});

describe("the daemon of a URI", () => {
  const parse = (uri: string) => parseConnectionUri(uri, { runtimeFolder: "/run/user/1000" }).daemon;

  it("is behind a socket of the system or of the user, of QEMU alone or of all hypervisors", () => {
    const system = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"];
    expect(parse("qemu:///system")).toEqual({
      uri: "qemu:///system",
      way: { kind: "unix", sockets: system },
    });
    expect(parse("qemu:///session").way).toEqual({
      kind: "unix",
      sockets: ["/run/user/1000/libvirt/virtqemud-sock", "/run/user/1000/libvirt/libvirt-sock"],
    });
    expect(parse("qemu+unix:///system?socket=/x/y%20z")).toEqual({
      uri: "qemu:///system",
      way: { kind: "unix", sockets: ["/x/y z"] },
    });
  });

  it("is reached by ssh, by TLS (also if no transport is named), or by TCP", () => {
    expect(parse("qemu+ssh://me@far:2222/system?keyfile=/k&netcat=ncat&proxy=netcat")).toEqual({
      uri: "qemu:///system",
      way: {
        kind: "ssh",
        target: { host: "far", port: 2222, user: "me", keyFile: "/k", program: undefined, settings: [] },
        sockets: ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"],
        netcat: "ncat",
        proxy: "netcat",
      },
    });
    for (const uri of ["qemu+tls://far/system", "qemu://far/system"]) {
      expect(parse(uri).way).toEqual({ kind: "tls", host: "far", port: 16514, pki: undefined, verify: true });
    }
    expect(parse("qemu+tls://[::1]:99/system?pkipath=/pki&no_verify=1").way).toEqual({
      ...{ kind: "tls", host: "::1", port: 99, pki: "/pki", verify: false },
    });
    expect(parse("qemu+tcp://far/session").way).toEqual({ kind: "tcp", host: "far", port: 16509 });
    expect(parse("qemu+ssh://far/system?name=qemu:///embed").uri).toBe("qemu:///embed");
  });

  it.each([
    "nonsense",
    "qemu+ext:///system?command=/bin/x",
    "qemu+ssh://far/system?proxy=magic",
    "qemu+unix://far/system",
  ])("can't be found: %s", (uri) => {
    expect(() => parse(uri)).toThrow(
      expect.objectContaining({ code: "E_LIBVIRT_URI", message: expect.stringContaining(uri) }),
    );
  });
});
