import { writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { describeExport, MemoryDisk, NbdServer, type NbdServerEvent } from "../../src/nbd/index.js";
import { INFO, OPTION, OPTION_ERROR, OPTION_REPLY } from "../../src/nbd/wire/constants.js";
import { FAST, refuse } from "../support/mock-handshakes.js";
import {
  answer,
  greeting,
  infoExport,
  MockServer,
  optionReply,
  type Script,
  u16,
} from "../support/mock-server.js";
import { describeWith } from "../support/tools.js";
import { makeFolder, pattern, startNbdkit, startQemu } from "./servers.js";

/** Answers INFO with `replies` and everything else correctly; records the options. */
function describing(replies: readonly Uint8Array[], options: number[]): Script {
  return async (peer) => {
    peer.send(greeting());
    await peer.receive(4);
    while (true) {
      const { option, data } = await peer.option();
      options.push(option);
      if (option === OPTION.ABORT) return;
      peer.send(...(option === OPTION.INFO ? replies : answer(option, data, { contexts: ["a:a"] })));
    }
  };
}

describe("describing an export", () => {
  it("does not open it, and says goodbye", async () => {
    const options: number[] = [];
    const info = (payload: Uint8Array) => optionReply(OPTION.INFO, OPTION_REPLY.INFO, payload);
    const replies = [
      info(infoExport(4096, 3)),
      info(Buffer.concat([u16(INFO.DESCRIPTION), Buffer.from("described")])),
      optionReply(OPTION.INFO, OPTION_REPLY.ACK),
    ];
    await using mock = await MockServer.start(describing(replies, options));
    expect(await describeExport(mock.uri, { ...FAST, metaContexts: ["a:a"] })).toMatchObject({
      name: "disk",
      description: "described",
      size: 4096,
      readOnly: true,
      contexts: ["a:a"],
      protocol: "structured",
    });
    expect(options).not.toContain(OPTION.GO);
    expect(options.slice(-2)).toEqual([OPTION.INFO, OPTION.ABORT]);
  });

  it.each(["UNSUP", "UNKNOWN", "POLICY"] as const)("passes on a refusal with %s", async (reply) => {
    const options: number[] = [];
    const refusal = refuse(OPTION.INFO, OPTION_ERROR[reply], "no");
    await using mock = await MockServer.start(describing([refusal], options));
    await expect(describeExport(mock.uri, FAST)).rejects.toMatchObject({
      option: "INFO",
      reply,
      serverText: "no",
    });
    expect(options.at(-1)).toBe(OPTION.ABORT);
  });

  it("fails if a mandatory context or the size is missing", async () => {
    const replies = [optionReply(OPTION.INFO, OPTION_REPLY.ACK)];
    await using mock = await MockServer.start(describing(replies, []));
    await expect(describeExport(mock.uri, { ...FAST, metaContexts: ["b:b"] })).rejects.toMatchObject({
      missing: ["b:b"],
    });
    await expect(describeExport(mock.uri, FAST)).rejects.toMatchObject({
      name: "ProtocolError",
      message: expect.stringContaining("INFO"),
    });
  });

  it("is not possible if the server has no fixed handshake", async () => {
    await using mock = await MockServer.start(async (peer) => {
      peer.send(greeting(0));
      await peer.gone();
    });
    await expect(describeExport(mock.uri, FAST)).rejects.toMatchObject({ name: "ProtocolError" });
  });

  it("works with the built-in server, which does not open the export", async () => {
    await using folder = await makeFolder();
    const events: NbdServerEvent[] = [];
    await using server = await NbdServer.listen({
      exports: new Map([["disk", new MemoryDisk({ size: 65_536 }).freeze()]]),
      address: { path: `${folder.path}/socket` },
      onEvent: (event) => events.push(event),
    });
    const info = await describeExport(server.uri("disk"), { listContexts: true });
    expect(info).toMatchObject({ size: 65_536, availableContexts: ["base:allocation"] });
    expect(events.map(({ type }) => type)).not.toContain("export-opened");
  });
});

describeWith(["qemu-nbd", "nbdkit"], "describing an export of a real server", () => {
  it("works", async () => {
    await using folder = await makeFolder();
    const image = `${folder.path}/disk.raw`;
    await writeFile(image, pattern(0, 65_536));
    await using qemu = await startQemu(folder, "-r", "-f", "raw", image);
    expect(await describeExport(qemu.uri, { listContexts: true })).toMatchObject({
      size: 65_536,
      readOnly: true,
      availableContexts: ["base:allocation"],
      blockSize: { minimum: 1 },
    });
    await using nbdkit = await startNbdkit(folder, "-r", "file", image);
    expect(await describeExport(nbdkit.uri)).toMatchObject({ size: 65_536, readOnly: true });
  });
});
