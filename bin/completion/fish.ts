import type { CommandWords, Kind, OptionWords, Values } from "./words.js";

/**
 * A file for one of fish's folders of completions, or for `source`. It starts no nbdpull: a repository is a
 * folder.
 */
export function fishCompletion(commands: readonly CommandWords[]): string {
  return `# Completion of nbdpull for fish, made by: nbdpull completion fish

# Whether the option $argv[2] of the command $argv[1] takes the next word. 0: it does; 1: it does not.
function __nbdpull_takes
    switch "$argv"
${takingCases(commands).join("\n")}
    end
    return 1
end
${FUNCTIONS}
complete -c nbdpull -f
complete -c nbdpull -n 'not __nbdpull_is' -s h -l help -d 'the help'
complete -c nbdpull -n 'not __nbdpull_is' -s V -l version -d 'the version'
complete -c nbdpull -n 'not __nbdpull_is' -a help -d 'the help of a command'
complete -c nbdpull -n '__nbdpull_is help' -a ${quoted(commands.map(({ name }) => name).join(" "))}
${commands.flatMap(linesOf).join("\n")}
`;
}

function takingCases(commands: readonly CommandWords[]): string[] {
  return commands.flatMap(({ name, options }) => {
    const taking = options.filter(({ values, mayBeBare }) => values && !mayBeBare);
    if (taking.length === 0) return [];
    const patterns = taking.flatMap(({ flags }) => flags.map((flag) => quoted(`${name} ${flag}`)));
    return [`        case ${patterns.join(" ")}`, "            return 0"];
  });
}

function linesOf({ name, description, options, args, isVariadic }: CommandWords): string[] {
  return [
    "",
    `complete -c nbdpull -n 'not __nbdpull_is' -a ${name} -d ${quoted(description)}`,
    ...options.map((option) => optionLine(name, option)),
    ...args.map((values, index) => {
      const which = index === args.length - 1 && isVariadic ? `${index + 1} more` : `${index + 1}`;
      const offered = [...values.words, sourceOf(values.kind, index)].filter((each) => each !== "");
      const how = values.kind === "file" ? "-F" : `-a ${quoted(offered.join(" "))}`;
      return `complete -c nbdpull -n '__nbdpull_is ${name}; and __nbdpull_at ${which}' ${how}`;
    }),
  ];
}

function optionLine(command: string, { flags, description, values, mayBeBare }: OptionWords): string {
  const named = flags.map((flag) => (flag.startsWith("--") ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`));
  const what = values === undefined ? "" : ` ${offersOf(values, mayBeBare)}`;
  return `complete -c nbdpull -n '__nbdpull_is ${command}' ${named.join(" ")}${what} -d ${quoted(description)}`;
}

function offersOf({ kind, words }: Values, mayBeBare: boolean): string {
  const offered = [...words, sourceOf(kind, -1)].filter((each) => each !== "").join(" ");
  if (mayBeBare) return `-a ${quoted(offered)}`;
  return kind === "file" ? "-rF" : `-xa ${quoted(offered)}`;
}

/** @param index of the argument; -1: it is the value of an option */
function sourceOf(kind: Kind, index: number): string {
  const sources: Readonly<Record<Kind, string>> = {
    repository: index === 0 ? "(__nbdpull_repositories)" : "(__fish_complete_directories)",
    folder: "(__fish_complete_directories)",
    file: "",
    domain: "(__nbdpull_domains)",
    point: "(__nbdpull_points)",
    guest: "(__nbdpull_guests)",
    anything: "",
  };
  return sources[kind];
}

function quoted(text: string): string {
  return `'${text.replaceAll(/[\\']/g, "\\$&")}'`;
}

/** Leaves names out that are not plain: they may have been made to deceive, or to be run. */
const PLAIN_ONLY = "string match -r -- '^[\\\\pL\\\\pN._@+~][\\\\pL\\\\pN._@+~-]*$'";

const FUNCTIONS = `
# Whether a command is there, or the one that is named.
function __nbdpull_is
    set -l words (commandline -opc)
    test (count $words) -gt 1; or return 1
    test (count $argv) -eq 0; or test $words[2] = $argv[1]
end

# The arguments that are there, without options and their values. REPO may be left out where it is set: here it is not.
function __nbdpull_arguments
    set -l words (commandline -opc)
    set -l command $words[2]
    set -l skip
    set -l given
    for word in $words[3..]
        if test -n "$skip"
            set skip
        else if not string match -q -- '-*' $word
            set -a given $word
        else if __nbdpull_takes $command $word
            set skip 1
        end
    end
    if test -n "$NBDPULL_REPOSITORY" -a (count $given) -gt 0; and not contains $command backup run attach doctor
        if not string match -q -- '*/*' $given[1]; and test -d $NBDPULL_REPOSITORY/$given[1]
            set -p given $NBDPULL_REPOSITORY
        end
    end
    string join \\n -- $given
end

# Whether the argument with this number comes next, or with "more" a later one.
function __nbdpull_at
    set -l next (math 1 + (__nbdpull_arguments | count))
    test $next -eq $argv[1]; or test (count $argv) -gt 1 -a $next -gt $argv[1]
end

# The repository, and the domain if it is there.
function __nbdpull_place
    set -l words (__nbdpull_arguments)
    test (count $words) -gt 0; or set words $NBDPULL_REPOSITORY
    string replace -r -- '^~/' $HOME/ $words[1]
    echo $words[2]
end

# Names of the folders in $argv[1].
function __nbdpull_folders
    for path in $argv[1]/*/
        path basename $path
    end | ${PLAIN_ONLY}
end

function __nbdpull_domains
    set -l place (__nbdpull_place)
    test -n "$place[1]"; and __nbdpull_folders $place[1]
end

function __nbdpull_points
    echo latest
    set -l place (__nbdpull_place)
    test -n "$place[1]"; or return
    set -l folders $place[1]/*/
    test -n "$place[2]"; and set folders $place[1]/$place[2]/
    for folder in $folders
        __nbdpull_folders $folder | string match -r -- '^[0-9]{8}T[0-9].*'
    end
end

function __nbdpull_repositories
    __fish_complete_directories
    test -n "$NBDPULL_REPOSITORY"; and __nbdpull_folders $NBDPULL_REPOSITORY
end

function __nbdpull_guests
    command -q virsh; and virsh --readonly --quiet list --all --name 2>/dev/null | ${PLAIN_ONLY}
end
`;
