import { describe, expect, it } from "vitest";
import { OPTION, OPTION_REPLY } from "../../src/nbd/wire/constants.js";
import { answeringUpTo, go } from "../support/mock-handshakes.js";
import { FRAGMENTED } from "../support/mock-replies.js";
import { infoExport, MockServer, optionReply, u32 } from "../support/mock-server.js";
import { nbdpull } from "../support/nbdpull.js";

describe("info --list of a server with 65,000 names", () => {
  it("describes a thousand of them, several at a time, and says so", async () => {
    const names = Array.from({ length: 65_000 }, (_, index) => `disk-${index}`);
    let open = 0;
    let most = 0;
    await using mock = await MockServer.start(async (peer, index) => {
      open += 1;
      most = Math.max(most, open);
      peer.socket.once("close", () => {
        open -= 1;
      });
      await answeringUpTo(peer, index === 0 ? OPTION.LIST : OPTION.GO);
      if (index === 0) {
        const replies = names.map((name) =>
          optionReply(OPTION.LIST, OPTION_REPLY.SERVER, Buffer.concat([u32(name.length), Buffer.from(name)])),
        );
        peer.send(...replies, optionReply(OPTION.LIST, OPTION_REPLY.ACK));
        await peer.option();
        return;
      }
      peer.send(...go(infoExport(512, FRAGMENTED.flags)));
      await peer.request();
    });
    const ran = await nbdpull("info", "--list", "--json", mock.uri);
    expect(ran.code).toBe(0);
    expect(ran.stderr).toContain("lists 65000 exports, of which the first 1000 are described");
    expect((ran.json() as { exports: unknown[] }).exports).toHaveLength(1000);
    expect(mock.connections).toBe(1001);
    expect(most).toBeGreaterThan(1);
    expect(most).toBeLessThanOrEqual(5);
  });
});

describe("info --list of a server with many contexts of each export", () => {
  it("holds a bounded number of them, and says so", async () => {
    const many = Array.from({ length: 500 }, (_, index) => Buffer.from(`x:${index}-${"y".repeat(4000)}`));
    const lists = many.map((name, index) =>
      optionReply(OPTION.LIST_META_CONTEXT, OPTION_REPLY.META_CONTEXT, Buffer.concat([u32(index), name])),
    );
    await using mock = await MockServer.start(async (peer, index) => {
      if (index === 0) {
        await answeringUpTo(peer, OPTION.LIST);
        for (let n = 0; n < 40; n += 1) {
          const name = Buffer.from(`disk-${n}`);
          peer.send(optionReply(OPTION.LIST, OPTION_REPLY.SERVER, Buffer.concat([u32(name.length), name])));
        }
        peer.send(optionReply(OPTION.LIST, OPTION_REPLY.ACK));
        await peer.option();
        return;
      }
      await answeringUpTo(peer, OPTION.LIST_META_CONTEXT);
      peer.send(...lists, optionReply(OPTION.LIST_META_CONTEXT, OPTION_REPLY.ACK));
      await peer.option();
      peer.send(...go(infoExport(512, FRAGMENTED.flags)));
      await peer.request();
    });
    const ran = await nbdpull("info", "--list", "--json", mock.uri);
    expect([ran.code, ran.stderr]).toEqual([0, expect.stringContaining("more contexts than make sense")]);
    expect(ran.stdout.length).toBeLessThan(20 * 1024 * 1024);
    expect((ran.json() as { exports: unknown[] }).exports).toHaveLength(40);
  });
});
