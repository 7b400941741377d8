import { open, stat } from "node:fs/promises";
import { execa } from "execa";
import { fillRandom, fillText } from "./data.js";

export interface Image {
  readonly path: string;
  readonly format: "raw" | "qcow2";
}

/** Bytes. */
export interface Stretch {
  readonly offset: number;
  readonly length: number;
}

export type Content = "random" | "text";

const PIECE = 1024 * 1024;

/**
 * A sparse raw image with data only in the stretches. Every 4 KiB block holds its offset and `generation`.
 */
export async function makeRaw(
  path: string,
  virtualSize: number,
  stretches: readonly Stretch[],
  { content = "random", generation = 1 }: { content?: Content; generation?: number } = {},
): Promise<Image> {
  const fill = content === "random" ? fillRandom : fillText;
  const buffer = Buffer.allocUnsafeSlow(PIECE);
  const file = await open(path, "w");
  try {
    await file.truncate(virtualSize);
    for (const { offset, length } of stretches) {
      for (let done = 0; done < length; done += PIECE) {
        const piece = buffer.subarray(0, Math.min(PIECE, length - done));
        fill(piece, offset + done, generation);
        await file.write(piece, 0, piece.length, offset + done);
      }
    }
  } finally {
    await file.close();
  }
  return { path, format: "raw" };
}

export async function qemuImg(...args: readonly string[]): Promise<string> {
  return (await execa("qemu-img", args)).stdout;
}

/** @throws where the two differ in a single byte, or in size */
export async function compareImages(a: Image, b: Image): Promise<void> {
  // -U: a server has one of them open. Not -s: what is stored as zeroes and what is a hole may differ.
  const args = ["compare", "-U", "-f", a.format, "-F", b.format, a.path, b.path];
  const { stdout, stderr, exitCode } = await execa("qemu-img", args, { reject: false });
  // One that is longer by zeroes is a mere warning.
  if (exitCode !== 0 || stdout.includes("size mismatch")) {
    throw new Error(`qemu-img compare: ${stdout} ${stderr}`);
  }
}

/** `qemu-io`, reading its commands from standard input: 200,000 of them take some seconds that way. */
export async function qemuIo(image: Image, commands: readonly string[]): Promise<void> {
  const { stdout } = await execa("qemu-io", ["--cache=unsafe", "-f", image.format, image.path], {
    input: `${commands.join("\n")}\n`,
    maxBuffer: 256 * 1024 * 1024,
  });
  const complaint = /^.*(?:failed|invalid|error).*$/im.exec(stdout);
  if (complaint) throw new Error(`qemu-io: ${complaint[0]}`);
}

/** Bytes that a file takes up, not counting its holes. */
export async function storedBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * 512;
}
