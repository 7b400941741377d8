/**
 * Content for disks. Every 4 KiB block begins with its own offset, so a block in the wrong place is detected.
 */

import { randomFillSync } from "node:crypto";

const BLOCK = 4096;
const BASE = 1024 * 1024;

let randomBase: Buffer | undefined;
let textBase: Buffer | undefined;

/** Bytes that no compressor makes smaller. */
export function fillRandom(target: Buffer, offset: number, generation: number): void {
  randomBase ??= randomFillSync(Buffer.alloc(BASE));
  fillFrom(randomBase, target, offset, generation);
}

/**
 * Random bytes in hexadecimal: deflate compresses them to slightly more than half, as it does program files.
 */
export function fillText(target: Buffer, offset: number, generation: number): void {
  textBase ??= Buffer.from(randomFillSync(Buffer.alloc(BASE / 2)).toString("hex"), "latin1");
  fillFrom(textBase, target, offset, generation);
}

function fillFrom(base: Buffer, target: Buffer, offset: number, generation: number): void {
  for (let at = 0; at < target.length; at += base.length) base.copy(target, at);
  for (let at = 0; at + BLOCK <= target.length; at += BLOCK) {
    target.writeDoubleLE(offset + at + 1, at);
    target.writeDoubleLE(generation, at + 8);
  }
}
