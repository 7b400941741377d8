import { resolve } from "node:path";
import { namesStore } from "../src/backup/storage/open-store.js";

/** One repository has one place, however it is written: an absolute path, or an address. */
export function placeOf(repository: string): string {
  return namesStore(repository) ? repository.replace(/\/+$/, "") : resolve(repository);
}
