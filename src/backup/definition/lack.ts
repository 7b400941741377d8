/** Something that a definition wants and a host has not. */
export interface Lack {
  /** `machine type pc-q35-9.2`. */
  readonly wanted: string;
  /** Why, if it isn't that there is none. */
  readonly why?: string | undefined;
  /**
   * Changes the definition. @returns what it has instead: `machine type pc-q35-7.2`. Absent: nothing can
   * stand in
   */
  readonly mend?: (() => string) | undefined;
}
