import { expect, it } from "vitest";
import { readRehearsal } from "../../../src/backup/repository/rehearsal-record.js";
import type { StoredFolder } from "../../../src/backup/storage/stored-folder.js";

it.each(["EIO", "EACCES", "ENOENT"])(
  "is none where the file system says %s, since it is only shown",
  async (code) => {
    // No file system has a bad sector at will.
    const folder = {
      read: async () => {
        throw Object.assign(new Error(code), { code });
      },
    } as unknown as StoredFolder;
    expect(await readRehearsal(folder)).toBeUndefined();
  },
);
