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

it("keeps nothing of what comes after it has failed, up to its end, and bounds that too", async () => {
  const before = process.memoryUsage().arrayBuffers;
  const download = new Download(256 * 1024 ** 2);
  download.fail(new Error("enough"));
  const megabyte = "x".repeat(1024 ** 2);
  for (let at = 0; at < 200; at += 1) expect(download.take(packet(STATUS.continue, megabyte))).toBe("more");
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(100 * 1024 ** 2);
  expect(download.take(packet(STATUS.continue))).toBe("finish");
  expect(download.take(packet(STATUS.ok))).toBe("ended");
  await expect(download.bytes).rejects.toThrow("enough");
  const endless = new Download(7);
  endless.fail(new Error("enough"));
  expect(() => endless.take(packet(STATUS.continue, "abcdefgh"))).toThrow(/more than 7 bytes/);
});
