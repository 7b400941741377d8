import { describe, expect, it } from "vitest";
import { type Hypervisor, hostOf, parseConnectionUri } from "../../../src/backup/libvirt/hypervisor.js";

const parse = (uri: string): Hypervisor => parseConnectionUri(uri, { runtimeFolder: "/nowhere" }).hypervisor;

describe("the libvirt URI", () => {
  it.each(["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/x", "qemu+tls:///system"])(
    "means this host: %s",
    (uri) => expect(parse(uri)).toEqual({ kind: "local" }),
  );

  it.each([
    ["qemu+tls://hv1.example/system", "hv1.example"],
    ["qemu+tcp://[2001:db8::1]:16509/system", "2001:db8::1"],
    ["qemu://hv1/system", "hv1"],
    ["qemu+ssh://root@[::1]/system", "::1"],
    ["qemu+ssh:///system", "localhost"],
  ])("means another host: %s", (uri, host) => expect(hostOf(parse(uri))).toBe(host));

  it("passes to ssh what it passes to libvirt's ssh", () => {
    const target = (uri: string): unknown => {
      const hypervisor = parse(uri);
      return hypervisor.kind === "ssh" ? hypervisor.target : hypervisor;
    };
    expect(target("qemu+ssh://hv1/system")).toEqual({
      ...{ host: "hv1", port: undefined, user: undefined, keyFile: undefined, program: undefined },
      settings: [],
    });
    expect(
      target(
        "qemu+ssh://a%40b@hv1:2222/system?keyfile=/k%20+e&command=/opt/ssh&no_verify=1;known_hosts=/x&no_tty=1",
      ),
    ).toEqual({
      ...{ host: "hv1", port: 2222, user: "a@b", keyFile: "/k +e", program: "/opt/ssh" },
      settings: ["StrictHostKeyChecking=no"],
    });
    expect(target("qemu+ssh://EXAMPLE%5Cjane@hv1/system")).toMatchObject({ user: "EXAMPLE\\jane" });
    expect(() => target("qemu+ssh://jane%5C@hv1/system")).toThrow(/jane/);
    expect(
      target("qemu+libssh://hv1/system?known_hosts=/x&known_hosts_verify=auto&no_verify=0"),
    ).toMatchObject({ settings: ["UserKnownHostsFile=/x", "StrictHostKeyChecking=accept-new"] });
  });
});
