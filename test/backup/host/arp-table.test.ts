import { execa } from "execa";
import { describe, expect, it } from "vitest";
import { addressesBeside, arpTable, askAround, parseArpTable } from "../../../src/backup/host/arp-table.js";

it("reads who has answered behind a device, and nobody else", () => {
  const table = `IP address       HW type     Flags       HW address            Mask     Device
192.0.2.7        0x1         0x2         02:FC:00:00:00:05     *        virbr1
192.0.2.8        0x1         0x0         00:00:00:00:00:00     *        virbr1
192.0.2.9        0x1         0x6         02:fc:00:00:00:06     *        virbr1
192.0.2.7        0x1         0x2         02:fc:00:00:00:07     *        eth0
`;
  expect(parseArpTable(table, "virbr1")).toEqual([
    { address: "192.0.2.7", mac: "02:fc:00:00:00:05" },
    { address: "192.0.2.9", mac: "02:fc:00:00:00:06" },
  ]);
  expect(parseArpTable("", "virbr1")).toEqual([]);
});

it("counts the addresses of a network, and none of one that is too large", () => {
  expect(addressesBeside("192.0.2.6", "255.255.255.252")).toEqual(["192.0.2.5"]);
  expect(addressesBeside("192.0.2.1", "255.255.255.0")).toHaveLength(253);
  expect(addressesBeside("192.0.2.1", "255.255.255.255")).toEqual([]);
  expect(addressesBeside("10.0.0.1", "255.0.0.0")).toEqual([]);
});

const [name, device, inside] = [`nbdpull-${process.pid}`, `nbdp${process.pid}`, `nbdi${process.pid}`];
const ip = async (...args: readonly string[]) => await execa("ip", args);
const hasNamespaces = await ip("netns", "add", name)
  .then(() => ip("netns", "delete", name))
  .then(
    () => true,
    () => false,
  );

// It takes root and iproute2, and a container may not allow it.
describe.skipIf(!hasNamespaces)("a machine that speaks to nobody", () => {
  it("gets into the table when its network is asked around", async () => {
    await ip("netns", "add", name);
    try {
      await ip("link", "add", device, "type", "veth", "peer", "name", inside, "netns", name);
      await ip("addr", "add", "198.51.100.1/28", "dev", device);
      await ip("link", "set", device, "up");
      await ip("-n", name, "addr", "add", "198.51.100.9/28", "dev", inside);
      await ip("-n", name, "link", "set", inside, "up");
      expect(await arpTable(device)).toEqual([]);
      await askAround(device);
      await expect
        .poll(() => arpTable(device))
        .toEqual([{ address: "198.51.100.9", mac: expect.stringMatching(/^[0-9a-f:]{17}$/) }]);
    } finally {
      await ip("netns", "delete", name);
    }
  });
});
