import { homedir } from "node:os";
import { join } from "node:path";

/**
 * Where this host's nbdpull keeps what must not lie in a repository, because others can write there. Root's
 * is for the whole host, other users have one of their own.
 */
export function usualStateFolder(): string {
  const { NBDPULL_STATE_FOLDER: given, XDG_STATE_HOME: home } = process.env;
  if (given !== undefined && given !== "") return given;
  if (process.geteuid?.() === 0) return "/var/lib/nbdpull";
  return join(home !== undefined && home !== "" ? home : join(homedir(), ".local", "state"), "nbdpull");
}
