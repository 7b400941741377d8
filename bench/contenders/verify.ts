import { readFile } from "node:fs/promises";
import { compareImages, type Image } from "../images.js";
import { type Command, onlySource, type Task } from "../workload.js";

/** Judges an image that the warm-up run has made by QEMU's own comparison, byte for byte. */
export function equalsSource(image: (task: Task) => Image): (task: Task) => Promise<string> {
  return async (task) => {
    const source = onlySource(task);
    await compareImages(image(task), source.expected);
    return source.bitmap === undefined
      ? "qemu-img compare with the disk"
      : "qemu-img compare with the dirty extents, nothing in between";
  };
}

/** A client that throws away what it reads leaves nothing to look at. */
export async function nothingToCompare(): Promise<string> {
  return "by its exit code only: it keeps nothing";
}

interface MapLine {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

/** A map in the JSON of `nbdinfo --map`: without a gap, from 0 to the end of the disk. */
export async function isWholeMap(task: Task, { stdout = "" }: Command): Promise<string> {
  const lines = JSON.parse(await readFile(stdout, "utf8")) as readonly MapLine[];
  let end = 0;
  let extents = 0;
  let last: number | undefined;
  for (const { offset, length, type } of lines) {
    if (offset !== end) throw new Error(`the map has a gap or an overlap at ${end}`);
    end = offset + length;
    if (type !== last) extents += 1;
    last = type;
  }
  if (end !== onlySource(task).virtualSize) throw new Error(`the map ends at ${end}`);
  return `${extents} extents, which cover the disk without a gap`;
}
