/** How files of a point in an object store are called while it is merged with others. */
const ASIDE = /~[0-9a-f]{8}$/;

/** @param nonce eight hexadecimal digits, others for each merge */
export function asideName(name: string, nonce: string): string {
  return `${plainName(name)}~${nonce}`;
}

/** The name that the file had, or will have. */
export function plainName(name: string): string {
  return name.replace(ASIDE, "");
}
