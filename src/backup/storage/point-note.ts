/**
 * The note of a point that is being made, merged or removed in an object store: `.ID.partial` beside the
 * point.
 */
import { randomUUID } from "node:crypto";
import { parseJson } from "../base/json.js";

const NOTE = /^\.(.+)\.partial$/;
export const MOST_NOTE_BYTES = 64 * 1024;

/**
 * `cleared`: another process has found it, and removes what is left. `late`: a process that had lost the
 * lease may have put a manifest or a file, and has the next one look. `merging`: other images of the point
 * are being made. `replacing`: they take the place of its own.
 */
type NoteState = "begun" | "cleared" | "removing" | "late" | "merging" | "replacing";

/** @param prefix of all keys of the domain */
export function noteKey(prefix: string, id: string): string {
  return `${prefix}.${id}.partial`;
}

/** The point that a note is of; undefined: this is the name of no note. */
export function notedPoint(name: string): string | undefined {
  const [, id] = NOTE.exec(name) ?? [];
  return id === undefined || id.includes("/") ? undefined : id;
}

/** An upload that takes the place of a file of the point when it is completed. */
export interface NotedUpload {
  readonly file: string;
  readonly uploadId: string;
}

/** Another content each time, so that each process knows its own. */
export function noteOf(state: NoteState, uploads: readonly NotedUpload[] = []): Buffer {
  return Buffer.from(JSON.stringify({ state, nonce: randomUUID(), ...(uploads.length > 0 && { uploads }) }));
}

/** The uploads that a note tells of. */
export function uploadsIn(note: Buffer | undefined): NotedUpload[] {
  const { uploads } = (parseJson(note?.toString("utf8") ?? "") ?? {}) as Record<string, unknown>;
  return Array.isArray(uploads) ? uploads.filter(isUpload) : [];
}

function isUpload(value: unknown): value is NotedUpload {
  const { file, uploadId } = (value ?? {}) as Record<string, unknown>;
  return typeof file === "string" && !file.includes("/") && typeof uploadId === "string";
}

/** Whether a run has begun to make the point, as far as its note tells. */
export function isBegun(note: Buffer): boolean {
  return isIn("begun", note);
}

export function isRemoval(note: Buffer): boolean {
  return isIn("removing", note);
}

export function isReplacing(note: Buffer): boolean {
  return isIn("replacing", note);
}

function isIn(expected: NoteState, note: Buffer): boolean {
  const { state } = (parseJson(note.toString("utf8")) ?? {}) as Record<string, unknown>;
  return state === expected;
}
