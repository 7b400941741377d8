import type { CommandWords, OptionWords, Values } from "./words.js";

/**
 * A script for `source`, or for a file that bash-completion loads. It starts no nbdpull: a repository is a
 * folder.
 */
export function bashCompletion(commands: readonly CommandWords[]): string {
  return `# Completion of nbdpull for bash, made by: nbdpull completion bash

_nbdpull_commands='${commands.map(({ name }) => name).join(" ")}'

# Tells of the command $1 its options, the kinds and words of its arguments, and whether the last one may be repeated.
_nbdpull_of() {
  case $1 in
${commands.map(commandCase).join("\n")}
  esac
}

# Tells of $1, a command and one of its options, what the option's value may be; fails if it takes none.
_nbdpull_value_of() {
  kind= words= bare=
  case $1 in
${valueCases(commands).join("\n")}
    *) return 1 ;;
  esac
}
${BODY}`;
}

function commandCase({ name, options, args, isVariadic }: CommandWords): string {
  const kinds = args.map(({ kind }) => kind).join(" ");
  const first = args[0]?.words ?? [];
  return `    ${name})
      options='${options.flatMap(({ flags }) => flags).join(" ")}'
      kinds=(${kinds}) first='${first.join(" ")}' variadic=${isVariadic ? 1 : ""}
      ;;`;
}

/** One line for all commands where an option's value is the same in each. */
function valueCases(commands: readonly CommandWords[]): string[] {
  const all = commands.flatMap(({ name, options }) => options.map((option) => ({ name, option })));
  const flags = new Set(all.filter(({ option }) => option.values).map(({ option }) => option.flags[0] ?? ""));
  return [...flags].flatMap((flag) => {
    const having = all.filter(({ option }) => option.flags[0] === flag);
    const meanings = new Set(having.map(({ option }) => meaningOf(option)));
    return [...meanings].flatMap((meaning) => {
      if (meaning === "") return [];
      const those = having.filter(({ option }) => meaningOf(option) === meaning);
      const patterns = meanings.size === 1 ? [`*' ${flag}'`] : those.map(({ name }) => `'${name} ${flag}'`);
      return `    ${patterns.join("|")}) ${meaning} ;;`;
    });
  });
}

function meaningOf({ values, mayBeBare }: OptionWords): string {
  if (values === undefined) return "";
  return `${assigned(values)}${mayBeBare ? " bare=1" : ""}`;
}

function assigned({ kind, words }: Values): string {
  return `kind=${kind} words='${words.join(" ")}'`;
}

const BODY = `
# Names of the folders in $1 that begin with $2.
_nbdpull_folders() {
  local path name
  for path in "$1"/"$2"*/; do
    name=\${path%/} name=\${name##*/}
    [[ -d $path && $name != *$'\\n'* ]] && printf '%s\\n' "$name"
  done
}

# Whether the name $1 is plain. Others are not offered, because bash inserts them as they are: they may have
# been made to deceive, to be options, or to be run.
_nbdpull_is_plain() { [[ $1 != -* && $1 != *[![:alnum:]._@+~-]* ]]; }

_nbdpull_offer() { # WORDS KIND CURRENT
  local cur=$3 one
  mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
  case $2 in
    file | folder | repository)
      local how=-f
      [[ $2 == file ]] || how=-d
      while IFS= read -r one; do COMPREPLY+=("$one"); done < <(compgen $how -- "$cur")
      compopt -o filenames 2>/dev/null
      ;;
    domain | point | guest)
      while IFS= read -r one; do
        [[ $one == "$cur"* ]] && _nbdpull_is_plain "$one" && COMPREPLY+=("$one")
      done < <(_nbdpull_names "$2" "$cur")
      ;;
  esac
}

_nbdpull_names() { # KIND CURRENT
  local repo=\${given[0]-\${NBDPULL_REPOSITORY-}} domain=\${given[1]-} folder
  [[ $repo == '~/'* ]] && repo=$HOME/\${repo:2}
  case $1 in
    guest) command -v virsh >/dev/null && virsh --readonly --quiet list --all --name 2>/dev/null ;;
    domain) [[ -n $repo ]] && _nbdpull_folders "$repo" "$2" ;;
    point)
      echo latest
      [[ -n $repo ]] || return
      for folder in "$repo"/\${domain:-*}/; do _nbdpull_folders "\${folder%/}" "$2"; done | grep -E '^[0-9]{8}T[0-9]'
      ;;
  esac
}

_nbdpull() {
  COMPREPLY=()
  # Not COMP_WORDS, where = and : end words.
  local -a line
  local i word text=\${COMP_LINE:0:COMP_POINT}
  read -a line <<<"$text"
  line=("\${line[@]:1}")
  [[ $text == *[[:space:]] ]] && line+=('')
  local cur=\${line[\${#line[@]}-1]} command=\${line[0]-} options kinds=() first= variadic= kind words bare
  if ((\${#line[@]} < 2)); then
    mapfile -t COMPREPLY < <(compgen -W "$_nbdpull_commands help --help --version" -- "$cur")
    return
  fi
  if [[ $command == help ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$_nbdpull_commands" -- "$cur")
    return
  fi
  _nbdpull_of "$command"
  local -a given=()
  local option= only_words=
  for ((i = 1; i < \${#line[@]} - 1; i++)); do
    word=\${line[i]}
    if [[ -n $option ]]; then
      _nbdpull_value_of "$command $option"
      option=
      [[ -z $bare || " $words " == *" $word "* ]] && continue
    fi
    if [[ -n $only_words || $word != -* || $word == - ]]; then
      given+=("$word")
    elif [[ $word == -- ]]; then
      only_words=1
    elif _nbdpull_value_of "$command $word"; then
      option=$word
    fi
  done
  # Where it is set, REPO may be left out.
  if [[ \${kinds[*]} == 'repository domain'* && -n \${given[0]-} && \${given[0]} != */* &&
    -d \${NBDPULL_REPOSITORY:-/dev/null}/\${given[0]} ]]; then
    given=("$NBDPULL_REPOSITORY" "\${given[@]}")
  fi
  if [[ -n $option ]] && _nbdpull_value_of "$command $option"; then
    _nbdpull_offer "$words" "$kind" "$cur"
    [[ -z $bare ]] && return
    local -a offered=("\${COMPREPLY[@]}")
    _nbdpull_argument
    COMPREPLY+=("\${offered[@]}")
  elif [[ -z $only_words && $cur == --*=* ]]; then
    _nbdpull_value_of "$command \${cur%%=*}" && _nbdpull_offer "$words" "$kind" "\${cur#*=}"
  elif [[ -z $only_words && $cur == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
  else
    _nbdpull_argument
  fi
}

_nbdpull_argument() {
  local at=\${#given[@]}
  ((at >= \${#kinds[@]})) && { [[ -n $variadic ]] || return; at=$((\${#kinds[@]} - 1)); }
  _nbdpull_offer "$first" "\${kinds[at]-anything}" "$cur"
  if [[ $at == 0 && \${kinds[0]-} == repository && \${kinds[1]-} == domain && -n \${NBDPULL_REPOSITORY-} ]]; then
    local -a offered=("\${COMPREPLY[@]}")
    _nbdpull_offer '' domain "$cur"
    COMPREPLY+=("\${offered[@]}")
  fi
}

complete -F _nbdpull nbdpull
`;
