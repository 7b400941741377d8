import type { CommandWords, Kind, OptionWords, Values } from "./words.js";

/** A file for a folder of zsh's `fpath`, or for `source`. It starts no nbdpull: a repository is a folder. */
export function zshCompletion(commands: readonly CommandWords[]): string {
  const listed = commands.map(({ name, description }) => `    ${quoted(`${name}:${description}`)}`);
  return `#compdef nbdpull
# Completion of nbdpull for zsh, made by: nbdpull completion zsh

_nbdpull_commands() {
  local -a commands=(
${listed.join("\n")}
    'help:the help of a command'
  )
  _describe 'command' commands
}

# What the words of the command $1 may be.
_nbdpull_of() {
  case $1 in
${commands.map(commandCase).join("\n")}
    help) _arguments '1:command:_nbdpull_commands' ;;
  esac
}
${BODY}`;
}

function commandCase({ name, options, args, isVariadic }: CommandWords): string {
  const specs = [
    ...options.flatMap(optionSpecs),
    ...args.map((values, index) => {
      const isLast = index === args.length - 1;
      return quoted(`${isLast && isVariadic ? "*" : index + 1}:${values.kind}:${actionOf(values, index)}`);
    }),
  ];
  return `    ${name})
      _arguments -C -S \\
${specs.map((spec) => `        ${spec}`).join(" \\\n")}
      ;;`;
}

/** As `_arguments` takes them. */
function optionSpecs({ flags, description, values, mayBeBare, maySayAgain }: OptionWords): string[] {
  const told = `[${description.replaceAll(/[[\]\\]/g, "\\$&")}]`;
  return flags.map((flag) => {
    const excluded = maySayAgain ? "*" : `(${flags.join(" ")})`;
    if (values === undefined) return quoted(`${excluded}${flag}${told}`);
    // Without words of its own, the next word is never its value.
    const separator = mayBeBare && values.words.length === 0 ? "=-" : "=";
    const message = `${mayBeBare ? "::" : ":"}${values.kind}:${actionOf(values, -1)}`;
    return quoted(`${excluded}${flag}${separator}${told}${message}`);
  });
}

/** @param index of the argument; -1: it is the value of an option */
function actionOf({ kind, words }: Values, index: number): string {
  const actions: Readonly<Record<Kind, string>> = {
    repository: index === 0 ? "->repository" : "_files -/",
    folder: "_files -/",
    file: "_files",
    domain: "->domain",
    point: "->point",
    guest: "_nbdpull_guests",
    anything: words.length > 0 ? `(${words.join(" ")})` : " ",
  };
  return actions[kind];
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

const BODY = `
# Those of its arguments that are plain names. Others may have been made to deceive, or to be run.
_nbdpull_plain() {
  print -rl -- \${@:#(-*|*[^[:alnum:]._@+~-]*)}
}

_nbdpull_guests() {
  local -a names
  (( $+commands[virsh] )) && names=(\${(f)"$(virsh --readonly --quiet list --all --name 2>/dev/null)"})
  compadd -- \${(f)"$(_nbdpull_plain $names)"}
}

# Names of the folders in $1.
_nbdpull_folders() {
  _nbdpull_plain $1/*(N/:t)
}

_nbdpull() {
  local curcontext=$curcontext state
  local -a line names
  local -A opt_args
  _arguments -C '(- *)'{-h,--help}'[the help]' '(- *)'{-V,--version}'[the version]' \\
    '1:command:_nbdpull_commands' '*::argument:->argument'
  [[ $state == argument ]] || return
  curcontext="\${curcontext%:*:*}:nbdpull-$words[1]:"
  state=
  line=()
  _nbdpull_of $words[1]
  local what=$state repo=\${line[1]-} domain=\${line[2]-}
  repo=\${(Q)repo} domain=\${(Q)domain}
  # Where it is set, REPO may be left out.
  if [[ -n \${NBDPULL_REPOSITORY-} && ( -z $repo || ( $repo != */* && -d $NBDPULL_REPOSITORY/$repo ) ) ]]; then
    domain=$repo repo=$NBDPULL_REPOSITORY
    [[ $what == domain && -n $domain ]] && what=\${\${(M)words[1]:#diff}:+point}
  fi
  [[ $repo == '~/'* ]] && repo=$HOME/\${repo#??}
  case $what in
    repository)
      _files -/
      [[ -n \${NBDPULL_REPOSITORY-} ]] && compadd -- \${(f)"$(_nbdpull_folders $NBDPULL_REPOSITORY)"}
      ;;
    domain)
      [[ -n $repo ]] && compadd -- \${(f)"$(_nbdpull_folders $repo)"}
      ;;
    point)
      names=(latest)
      if [[ -n $repo ]]; then
        local folder
        for folder in $repo/\${~\${domain:-*}}(N/); do names+=(\${(f)"$(_nbdpull_folders $folder)"}); done
      fi
      compadd -- latest \${(M)names:#[0-9]*T[0-9]*}
      ;;
  esac
}

if [[ $funcstack[1] == _nbdpull ]]; then
  _nbdpull "$@"
else
  compdef _nbdpull nbdpull
fi
`;
