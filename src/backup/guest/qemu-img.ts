/** One image of a disk whose domain is off, as qemu-img describes it. */
import { z } from "zod";
import { BackupError, PreconditionError } from "../base/errors.js";
import { oneLine } from "../base/one-line.js";
import { toolProcess } from "../host/tool-process.js";
import { confined, type ToolUser } from "./confined-tool.js";

/** Where an image is stored on this host. */
export interface DiskFile {
  readonly path: string;
  readonly kind: "file" | "block";
  /** QEMU's name of the format: `qcow2`, `raw`, … Never probed. */
  readonly format: string;
}

/** A node of QEMU's block layer, as its option `json:` takes it. */
export type BlockNode = Readonly<Record<string, unknown>>;

const info = z.object({
  "virtual-size": z.number().int().nonnegative(),
  encrypted: z.boolean().optional(),
  "backing-filename": z.string().optional(),
  "backing-filename-format": z.string().optional(),
  "format-specific": z
    .object({
      data: z
        .object({
          /** Of qcow2: `0.10` is version 2, `1.1` version 3. */
          compat: z.string().optional(),
          "data-file": z.string().optional(),
          bitmaps: z.array(z.object({ name: z.string(), flags: z.array(z.string()) })).optional(),
        })
        .optional(),
    })
    .optional(),
});
export type ImageInfo = z.infer<typeof info>;

/** Time to read an image's header and bitmaps, with a margin for slow disks. */
const TIMEOUT_MS = 120_000;
/** Stands in for the data file that a header may name: that must be looked at before anything opens it. */
const NO_DATA = { driver: "null-co", size: 2 ** 50, "read-zeroes": true };

/**
 * Reads what the header of an image says. Opens nothing that the header names.
 * @param file the node of the file that holds the image
 * @throws {PreconditionError} qemu-img is not installed, or another process writes to the image
 * @throws {BackupError} qemu-img can't read the image; the message has its output
 */
export async function readInfo(
  { path, format }: DiskFile,
  file: BlockNode,
  {
    as,
    cwd,
    fd,
    signal,
  }: {
    readonly as: ToolUser | undefined;
    /** The folder that qemu-img runs in. */
    readonly cwd: string;
    /** Becomes the standard input of qemu-img. */
    readonly fd?: number | undefined;
    readonly signal: AbortSignal | undefined;
  },
): Promise<ImageInfo> {
  const alone = { driver: format, ...(format === "raw" ? {} : { backing: null }), file };
  const ask = async (node: BlockNode) => {
    const command = confined("qemu-img", ["info", "--output=json", asArgument(node)], as);
    const { execa } = await import("execa");
    const ran = await execa(...command, {
      ...toolProcess(),
      cwd,
      stdin: inputFrom(fd),
      timeout: TIMEOUT_MS,
      reject: false,
      ...(signal ? { cancelSignal: signal } : {}),
    });
    signal?.throwIfAborted();
    return { ...ran, stdout: ran.stdout, stderr: ran.stderr };
  };
  let ran = await ask(format === "qcow2" ? { ...alone, "data-file": NO_DATA } : alone);
  // Some versions of QEMU refuse the option for an image that has no data file.
  if (ran.failed && /'data-file' can only be set/.test(ran.stderr)) ran = await ask(alone);
  if (ran.timedOut) {
    throw new BackupError("E_QEMU_TOOL", `qemu-img did not end at ${path}: does its storage answer?`, {
      details: { path, tool: "qemu-img" },
    });
  }
  if (ran.failed) throw refusedByTool("qemu-img", path, ran);
  try {
    return info.parse(JSON.parse(ran.stdout));
  } catch (cause) {
    const message = `what qemu-img info printed of ${path} makes no sense: is it another program?`;
    throw new BackupError("E_QEMU_TOOL", message, { cause, details: { path, tool: "qemu-img" } });
  }
}

/** An open file as the standard input of a tool, which finds it there as /proc/self/fd/0. */
export function inputFrom(fd: number | undefined): "ignore" | 3 {
  // execa takes any descriptor; its type lists a few.
  return fd === undefined ? "ignore" : (fd as 3);
}

/** A file name in it is a file name, also if it is `--help`, `json:{}` or `nbd:host:10809`. */
export function asArgument(node: BlockNode): string {
  return `json:${JSON.stringify(node)}`;
}

/** The error for a tool that failed on an image. */
export function refusedByTool(
  tool: "qemu-img" | "qemu-nbd",
  path: string,
  { code, stderr }: { readonly code?: string | undefined; readonly stderr: string },
): BackupError {
  const missing = missingTool(tool, code, stderr);
  if (missing !== undefined) {
    const pack = missing === tool ? "qemu-utils" : "util-linux";
    const message = `${missing} isn't installed, and nbdpull needs it to read the disks of a domain that is off. Install it (Debian: apt install ${pack}), or start the domain`;
    return new PreconditionError("E_NO_QEMU_TOOLS", message, { details: { tool: missing } });
  }
  const said = oneLine(stderr, ": ");
  const details = { path, tool };
  if (/Failed to get .* lock/.test(said)) {
    const message = `${path} is in use by another process that writes to it: was its domain started just now, or does another one have the disk? (${said})`;
    return new PreconditionError("E_IMAGE_IN_USE", message, { details });
  }
  return new BackupError("E_QEMU_TOOL", `${tool} can't use ${path}: ${said || "no reason given"}`, {
    details,
  });
}

/** `prlimit` runs `setpriv`, and that runs the tool. */
function missingTool(tool: string, code: string | undefined, stderr: string): string | undefined {
  if (code === "ENOENT") return "prlimit";
  if (/^prlimit: failed to execute/.test(stderr)) return "setpriv";
  return /^setpriv: failed to execute/.test(stderr) ? tool : undefined;
}
