/** Receives the progress of long jobs; sizes in bytes. */
export interface Progress {
  /** @param name of what is read, such as `web vda`: the domain, and its disk */
  update(name: string, position: number, total: number, readBytes: number): void;
  /** Shows whether the connection of `name` is away. */
  away(name: string, isAway: boolean): void;
  /** Shows no more of a subject, such as a domain, as its result is there. */
  end(subject: string): void;
  stop(): void;
}

export const SILENT: Progress = {
  update: () => undefined,
  away: () => undefined,
  end: () => undefined,
  stop: () => undefined,
};

/** Whether what is called so belongs to the subject: `web vda` and `web: vda` do to `web`. */
export function isOf(subject: string, name: string): boolean {
  return name === subject || name.startsWith(`${subject} `) || name.startsWith(`${subject}: `);
}
