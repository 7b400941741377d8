/**
 * What a guest disk looks like to a backup: every byte is in one of three states.
 *
 *     guest   0        64K       128K      192K      256K
 *             |  data   |  clean  |  zero   |  data   |
 *
 *   clean   unchanged since the base: an increment says nothing of it, the parent's bytes are valid
 *   zero    reads as zeroes: an increment must say so, or the parent's old bytes come back at restore
 *   data    has to be read and stored
 *
 * In a full copy there is no base, so nothing is ever clean.
 */
export type ExtentState = "clean" | "zero" | "data";

/** `length` bytes (> 0) from guest offset `offset`, all in one state. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly state: ExtentState;
}
