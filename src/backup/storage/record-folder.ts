/**
 * The small files beside the manifest of a point, or beside the points of a domain, that are replaced now and
 * then.
 */
export interface RecordFolder extends AsyncDisposable {
  /** At least of those that begin with a dot. */
  names(): Promise<readonly string[]>;
  /**
   * Creates it or replaces it, in one step.
   * @throws {DamageError} `E_MANIFEST`: the point was removed meanwhile
   */
  replace(name: string, content: string): Promise<void>;
  /** Removes it. It may be missing. */
  unlink(name: string): Promise<void>;
  /** Waits until all of it is on stable storage. */
  sync(): Promise<void>;
}
