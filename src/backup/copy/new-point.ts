import type { HeldFolder } from "../host/held-folder.js";
import { ImageFile } from "../image/image-file.js";
import type { NewFile } from "./copied-file.js";

/** Creates a file of a point in a folder of this machine, on stable storage when it is finished. */
export async function createFile(folder: HeldFolder, name: string): Promise<NewFile> {
  const file = await ImageFile.create(folder.at(name));
  return {
    write: async (bytes, position) => await file.write(bytes, position),
    finish: async (length) => {
      await file.truncate(length);
      await file.sync();
    },
    close: async () => await file.close(),
  };
}
