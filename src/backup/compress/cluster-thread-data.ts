/** What a thread that compresses clusters is told when it starts. */
export interface CompressThreadData {
  /** It compresses by itself, one cluster at a time; otherwise libuv's threads do, four at a time. */
  readonly ownThread: boolean;
}
