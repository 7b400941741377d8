/**
 * Conversations with real servers, stored as text and played back. A recording is a sequence of turns: what
 * the client sends, and what the server answers.
 *
 *     C
 *     S TkJETUFHSUNJSEFWRU9QVAAD
 *     C AAAAA0lIQVZFT1BUAAAACwAAAAA=
 *     S ...
 */

import { createConnection, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC } from "../../src/nbd/wire/constants.js";
import { pattern } from "../nbd/servers.js";
import type { FaultyLine } from "./faulty-line.js";
import type { Peer } from "./mock-server.js";

export interface Turn {
  readonly client: Buffer;
  readonly server: Buffer;
}

/** A stretch of a disk that holds {@link pattern}. */
export type Stretch = readonly [offset: number, length: number];

export function parseRecording(text: string): Turn[] {
  const [first, ...lines] = text.trimEnd().split("\n");
  if (first !== "C") throw new Error("a recording starts with the server's greeting");
  const turns: Turn[] = [];
  let client = Buffer.alloc(0);
  for (const line of lines) {
    const bytes = Buffer.from(line.slice(2), "base64");
    if (line.startsWith("C")) client = bytes;
    else turns.push({ client, server: bytes });
  }
  return turns;
}

export function formatRecording(turns: readonly Turn[]): string {
  const line = (who: string, bytes: Buffer) => `${who} ${bytes.toString("base64")}`.trimEnd();
  return turns.map(({ client, server }) => `${line("C", client)}\n${line("S", server)}\n`).join("");
}

/** Listens in `folder`, and records the conversations between clients and the server at `target`. */
export async function record(
  folder: string,
  target: string | number,
  talk: (socketPath: string) => Promise<void>,
): Promise<Turn[]> {
  const turns: Turn[] = [];
  let client = Buffer.alloc(0);
  let server = Buffer.alloc(0);
  const path = join(folder, `recorder-${Math.random()}.sock`);
  const ended: Promise<void>[] = [];
  const proxy = createServer((near) => {
    const far: Socket =
      typeof target === "number" ? createConnection(target, "127.0.0.1") : createConnection(target);
    near.on("data", (bytes: Buffer) => {
      if (server.length > 0) {
        turns.push({ client, server });
        client = Buffer.alloc(0);
        server = Buffer.alloc(0);
      }
      client = Buffer.concat([client, bytes]);
      far.write(bytes);
    });
    far.on("data", (bytes: Buffer) => {
      server = Buffer.concat([server, bytes]);
      near.write(bytes);
    });
    near.on("end", () => far.end());
    far.on("end", () => near.end());
    for (const socket of [near, far]) socket.on("error", () => socket.destroy());
    ended.push(new Promise((resolve) => near.once("close", () => resolve())));
  });
  await new Promise<void>((resolve) => proxy.listen(path, resolve));
  await talk(path);
  await Promise.all(ended);
  await new Promise((resolve) => proxy.close(resolve));
  return [...turns, { client, server }];
}

/** The number of bytes that the server sends before the client's first request. */
export function handshakeLength(turns: readonly Turn[]): number {
  const first = turns.findIndex(({ client }) => {
    const magic = client.length >= 4 ? client.readUInt32BE(0) : 0;
    return magic === REQUEST_MAGIC || magic === EXTENDED_REQUEST_MAGIC;
  });
  return turns.slice(0, first).reduce((sum, { server }) => sum + server.length, 0);
}

/**
 * Plays the server's part over a line that may have faults.
 * @returns what the client sent
 */
export async function play(
  turns: readonly Turn[],
  payloads: readonly Stretch[],
  peer: Peer,
  line: FaultyLine,
): Promise<Buffer> {
  const heard: Buffer[] = [];
  const contents = payloads.map(([offset, length]) => pattern(offset, length));
  for (const { client, server } of turns) {
    heard.push(await peer.receive(client.length));
    let rest = server;
    for (const content of contents) {
      const at = rest.indexOf(content);
      if (at < 0) continue;
      line.send(rest.subarray(0, at), content);
      rest = rest.subarray(at + content.length);
    }
    if (rest.length > 0) line.send(rest);
  }
  return Buffer.concat(heard);
}
