/** The image of a disk whose domain is off, as qemu-img describes it. */
import { execa } from "execa";
import { z } from "zod";
import { BackupError, PreconditionError } from "../base/errors.js";

/** Where a disk is stored on this host. */
export interface DiskFile {
  readonly path: string;
  readonly kind: "file" | "block";
  /** QEMU's name of the format: `qcow2`, `raw`, … Never probed. */
  readonly format: string;
}

export interface SourceImage {
  /** Bytes that the guest sees. */
  readonly size: number;
  /** Why an increment can't use the bitmap of that name; undefined if it can. */
  readonly bitmapObstacle: (name: string) => string | undefined;
}

const info = z.object({
  "virtual-size": z.number().int().nonnegative(),
  encrypted: z.boolean().optional(),
  "backing-filename": z.string().optional(),
  "backing-filename-format": z.string().optional(),
  "format-specific": z
    .object({
      data: z
        .object({
          bitmaps: z.array(z.object({ name: z.string(), flags: z.array(z.string()) })).optional(),
        })
        .optional(),
    })
    .optional(),
});
type Info = z.infer<typeof info>;

/**
 * Opens the image and its backing files briefly, read-only.
 * @throws {PreconditionError} qemu-img is not installed, another process writes to the image, or it can't be
 *   served
 * @throws {BackupError} qemu-img can't read the image; the message has its output
 */
export async function inspectImage(image: DiskFile, signal: AbortSignal | undefined): Promise<SourceImage> {
  const { path, format } = image;
  const args = ["info", "--output=json", "--backing-chain", "-f", format, path];
  const { failed, stdout, stderr, code } = await execa("qemu-img", args, {
    env: { LC_ALL: "C" },
    stdin: "ignore",
    reject: false,
    ...(signal ? { cancelSignal: signal } : {}),
  });
  signal?.throwIfAborted();
  if (failed) throw refusedByTool("qemu-img", path, { code, stderr });
  const [top, ...below] = readChain(path, stdout);
  refuseUnfit(path, [top, ...below]);
  return {
    size: top["virtual-size"],
    bitmapObstacle: (name) => bitmapObstacle(name, top, below),
  };
}

/** The error for a tool that failed on an image. */
export function refusedByTool(
  tool: "qemu-img" | "qemu-nbd" | "setpriv",
  path: string,
  { code, stderr }: { readonly code?: string | undefined; readonly stderr: string },
): BackupError {
  if (code === "ENOENT" || /^setpriv: failed to execute/.test(stderr)) {
    const pack = tool === "setpriv" ? "util-linux" : "qemu-utils";
    const message = `${tool} isn't installed, and nbdpull needs it to read the disks of a domain that is off. Install it (Debian: apt install ${pack}), or start the domain`;
    return new PreconditionError("E_NO_QEMU_TOOLS", message, { details: { tool } });
  }
  const said = stderr.trim().replaceAll(/\s*\n\s*/g, ": ");
  const details = { path, tool };
  if (/Failed to get .* lock/.test(said)) {
    const message = `${path} is in use by another process that writes to it: was its domain started just now, or does another one have the disk? (${said})`;
    return new PreconditionError("E_IMAGE_IN_USE", message, { details });
  }
  return new BackupError("E_QEMU_TOOL", `${tool} can't use ${path}: ${said || "no reason given"}`, {
    details,
  });
}

function readChain(path: string, text: string): [Info, ...Info[]] {
  try {
    return z.tuple([info], info).parse(JSON.parse(text));
  } catch (cause) {
    const message = `what qemu-img info printed of ${path} makes no sense: is it another program?`;
    throw new BackupError("E_QEMU_TOOL", message, { cause, details: { path, tool: "qemu-img" } });
  }
}

function refuseUnfit(path: string, chain: readonly Info[]): void {
  const unprobed = chain.every(
    (each) => each["backing-filename"] === undefined || each["backing-filename-format"],
  );
  const reason = chain.some(({ encrypted }) => encrypted)
    ? "it is encrypted, and only its domain's QEMU has the key: start the domain"
    : unprobed
      ? undefined
      : "it, or one below it, names a backing file without its format, which could be anything: qemu-img rebase -u -F FORMAT";
  if (reason === undefined) return;
  throw new PreconditionError(
    "E_DISK_UNFIT",
    `${path} can't be backed up while its domain is off: ${reason}`,
    {
      details: { path },
    },
  );
}

function bitmapObstacle(name: string, top: Info, below: readonly Info[]): string | undefined {
  const flags = bitmapsOf(top).find((bitmap) => bitmap.name === name)?.flags;
  if (flags === undefined) return "is not in the image (was the disk replaced, or a snapshot made since?)";
  if (flags.includes("in-use")) return "is broken (did QEMU die?)";
  if (!flags.includes("auto")) return "was switched off, and has not counted what changed since";
  // The bitmap of each layer counts only the writes made while it was the top; a running QEMU merges them.
  if (below.some((each) => bitmapsOf(each).some((bitmap) => bitmap.name === name))) {
    return "is spread over the images of a backing chain, which only a running QEMU joins";
  }
  return undefined;
}

function bitmapsOf(image: Info): readonly { readonly name: string; readonly flags: readonly string[] }[] {
  return image["format-specific"]?.data?.bitmaps ?? [];
}
