/** What a name of a disk, a bitmap or a checkpoint may go on with. */
const PART_OF_A_NAME = /[\p{L}\p{N}_-]/u;

/**
 * Whether libvirt's message names something: as a whole word, since the words around it and the quotes are
 * those of the language that its host speaks. Pure.
 */
export function isNamedIn(said: string, name: string): boolean {
  if (name === "") return false;
  for (let at = said.indexOf(name); at >= 0; at = said.indexOf(name, at + 1)) {
    const around = [said.at(at - 1), said.at(at + name.length)];
    if (at === 0) around[0] = undefined;
    if (!around.some((each) => each !== undefined && PART_OF_A_NAME.test(each))) return true;
  }
  return false;
}
