/**
 * The state of a guest disk's bytes in a backup. Every byte is in one of three states:
 *
 *     guest   0        64K       128K      192K      256K
 *             |  data   |  clean  |  zero   |  data   |
 *
 *   clean   unchanged since the base. An increment leaves it out, because the parent's bytes are valid.
 *   zero    reads as zeroes. An increment must record it, or a restore shows the parent's old bytes.
 *   data    must be read and stored.
 *
 * A full copy has no base, so nothing in it is clean.
 */
export type ExtentState = "clean" | "zero" | "data";

/** `length` bytes (> 0) from guest offset `offset`, all in one state. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly state: ExtentState;
}
