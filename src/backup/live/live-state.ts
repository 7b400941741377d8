import { z } from "zod";
import { PreconditionError } from "../base/errors.js";
import { parseJson } from "../base/json.js";
import { isMissing } from "../host/durable-files.js";
import type { HeldFolder } from "../host/held-folder.js";
import { ChangeablePath, unchangeablePath } from "../host/unchangeable-path.js";

/** Beside the disks, for as long as they aren't whole. */
export const STATE = ".nbdpull-live.json";
/** Longer than any. */
const MOST_BYTES = 1024 * 1024;

const state = z.object({
  format: z.literal("nbdpull-live"),
  version: z.literal(1),
  /** `preparing`: the guest can't have run, because nothing is defined yet. `ready`: it may have. */
  phase: z.enum(["preparing", "ready"]),
  /** The repository's id, and the domain's folder in it. */
  repository: z.string(),
  folder: z.string(),
  point: z.string(),
  /** The folder of this file, and the libvirt: images and definition name them. */
  place: z.string(),
  libvirt: z.string(),
  /** The new domain. */
  domain: z.object({ name: z.string(), uuid: z.string() }),
  /** What the note beside the point is called after; absent: the domain's UUID. */
  note: z.uuid().optional(),
  disks: z.array(
    z.object({
      name: z.string(),
      /** In the folder of this file: what the guest writes, based on the export. */
      file: z.string(),
      /**
       * The image that a restore makes beside it, first under the temporary name, and into which QEMU copies
       * what the guest has written. Absent: QEMU fills `file`.
       */
      whole: z.object({ file: z.string(), temporary: z.string() }).optional(),
      /** QEMU fills `file` after all: no whole image is made any more. */
      isLeftToQemu: z.boolean().optional(),
      /**
       * A copy into the whole image may have begun: it may show what the guest wrote and what `file` lost
       * when QEMU died, so no second copy goes into it.
       */
      hasBegun: z.boolean().optional(),
      /** The guest may have been switched over to the whole image: neither file is removed on suspicion. */
      isSwitching: z.boolean().optional(),
      /** The guest is on the whole image, and `file` is of the past. */
      isSwitched: z.boolean().optional(),
      /** What the disk's definition says of errors when all is done. */
      policies: z.record(z.string(), z.string()),
    }),
  ),
  /** Names under which files are made before they get their own: in the folder of this file. */
  temporaries: z.array(z.string()).default([]),
  /** Files that got their names, by device and inode: what others have put there since is not among them. */
  made: z.array(z.object({ name: z.string(), id: z.string() })).default([]),
  /** In the folder of this file: the definition. */
  xml: z.string(),
  /** What the definition has in the place of what this host has not. */
  adapted: z.array(z.object({ wanted: z.string(), now: z.string() })).default([]),
  salvage: z.boolean(),
});

/** What a live restore needs to go on after it was killed or the host was restarted. */
export type LiveState = Readonly<z.infer<typeof state>>;

/**
 * @returns undefined if there is none
 * @throws {PreconditionError} `E_LIVE_STATE`: it can't be read, or another user can change it
 * @throws the file system's error
 */
export async function readLiveState(folder: HeldFolder): Promise<LiveState | undefined> {
  const path = `${folder.path}/${STATE}`;
  let text: string;
  try {
    text = (await folder.read(STATE, MOST_BYTES)).toString("utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  const refusal = (why: string, cause?: unknown): PreconditionError => {
    const message = `the live restore that was begun in ${folder.path} can't go on, because ${path} ${why}: nothing was changed`;
    return new PreconditionError("E_LIVE_STATE", message, { cause, details: { path } });
  };
  try {
    // What it names is defined in libvirt, which runs as root.
    await unchangeablePath(`${folder.realPath}/${STATE}`, [0, process.getuid?.() ?? 0]);
  } catch (error) {
    if (!(error instanceof ChangeablePath)) throw error;
    throw refusal(`can be changed by ${error.who} (see ${error.folder})`, error);
  }
  const parsed = state.safeParse(parseJson(text));
  if (!parsed.success) throw refusal("makes no sense", parsed.error);
  return parsed.data;
}

/** Replaces it; durable when this returns. */
export async function writeLiveState(
  folder: HeldFolder,
  content: Omit<LiveState, "format" | "version">,
): Promise<void> {
  const whole = { format: "nbdpull-live", version: 1, ...content } satisfies LiveState;
  await folder.replace(STATE, `${JSON.stringify(whole, null, 2)}\n`);
  await folder.sync();
}

export async function removeLiveState(folder: HeldFolder): Promise<void> {
  await folder.unlink(STATE);
  await folder.sync();
}
