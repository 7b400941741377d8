/** Words in the commands that messages show, which people paste into a root shell. */

const PLAIN = /^[\w@%+=:,./][\w@%+=:,./-]*$/;

/** The text as one word of a shell: a name may hold blanks, quotes, semicolons or `$(...)`. */
export function shellWord(text: string): string {
  return PLAIN.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A domain's name as an argument of virsh, also one that looks like an option. */
export function domainWord(name: string): string {
  return name.startsWith("-") ? `--domain=${shellWord(name)}` : shellWord(name);
}
