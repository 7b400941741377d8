import { expect, it } from "vitest";
import { Download } from "../../../../src/backup/libvirt/rpc/download.js";
import { type Packet, STATUS, TYPE } from "../../../../src/backup/libvirt/rpc/packets.js";

const packet = (status: number, payload = ""): Packet => ({
  ...{ program: 1, procedure: 211, type: TYPE.stream, serial: 3, status },
  payload: Buffer.from(payload),
});

it("collects a stream, asks for its end to be said, and is whole when that is confirmed", async () => {
  const download = new Download(7);
  expect(download.take(packet(STATUS.continue, "abc"))).toBe("more");
  expect(download.take(packet(STATUS.continue, "defg"))).toBe("more");
  expect(download.take(packet(STATUS.continue))).toBe("finish");
  expect(download.take(packet(STATUS.ok))).toBe("ended");
  expect((await download.bytes).toString()).toBe("abcdefg");
});

it("takes no more than makes sense, and nothing of no status", () => {
  const download = new Download(7);
  download.take(packet(STATUS.continue, "abcd"));
  expect(() => download.take(packet(STATUS.continue, "efgh"))).toThrow(/more than 7 bytes/);
  expect(() => download.take(packet(9))).toThrow(/status 9/);
});

it("fails with the connection, also if nobody waits for it yet", async () => {
  const download = new Download(7);
  download.fail(new Error("lost"));
  await expect(download.bytes).rejects.toThrow("lost");
});
