import { dirname } from "node:path/posix";
import { anySignal } from "../../nbd/index.js";
import type { PreconditionError, UsageError } from "../base/errors.js";
import { BOOT_ID } from "../host/process-identity.js";
import { ScriptError, type Ssh } from "../host/ssh.js";
import { livingLine, sever } from "../host/ssh-forward.js";
import type { QemuUser } from "../libvirt/documents/domain-xml.js";
import { type MarkedDomain, PID_FILES } from "./frozen-mark.js";
import {
  type CutOptions,
  type FoundFolder,
  FROZEN,
  type JobPlace,
  type NewContent,
  NOTE,
  noParentError,
  othersParentError,
  QEMU,
  qemuUserError,
  SECRET,
} from "./local-job-folder.js";

/** File in a job's folder on another host that names the process there that holds the ssh connections. */
export const WAY = "way";

/** Exit codes of the scripts themselves, besides those of the commands that they run. */
const NO_PARENT = 90;
const NOT_ROOT = 91;
const CHANGEABLE = 92;
/** Begins the word for a guest that may be frozen; the mark of its run follows. */
const IS_FROZEN = "frozen:";

/** Another host's file system, reached by a shell there with the tools of GNU or busybox. */
export class SshPlace implements JobPlace {
  readonly #ssh: Ssh;

  constructor(ssh: Ssh) {
    this.#ssh = ssh;
  }

  async look(path: string): Promise<FoundFolder | undefined> {
    const printed = await this.#ssh.run(LOOK, { path, parent: dirname(path) }).catch((error: unknown) => {
      throw (error instanceof ScriptError && this.#known(error, path, undefined)) || error;
    });
    if (printed === "") return undefined;
    const [facts = "", ...note] = printed.split("\n");
    const [kind, uid, me, frozen, noted] = facts.split(" ");
    return {
      isFolder: kind === "folder",
      uid: Number(uid),
      ours: uid === "0" || uid === me,
      note: noted === "noted" ? note.join("\n") : undefined,
      frozen: frozen?.startsWith(IS_FROZEN) ? frozen.slice(IS_FROZEN.length) : undefined,
    };
  }

  async create(path: string, content: NewContent, qemu: QemuUser | undefined): Promise<void> {
    await this.#create(CREATE, path, content, qemu);
  }

  /**
   * Makes a folder as `create` does and removes it, in one command: it is not left if this process is killed.
   * @throws as `create` does
   */
  async tryOut(path: string, qemu: QemuUser | undefined): Promise<void> {
    await this.#create(`${CREATE}\n${REMOVE}`, path, { note: "" }, qemu);
  }

  async #create(
    script: string,
    path: string,
    { note, secret = "" }: NewContent,
    qemu: QemuUser | undefined,
  ): Promise<void> {
    const owner = qemu === undefined ? "" : String(qemu.uid);
    const group = qemu === undefined ? "" : String(qemu.gid);
    try {
      await this.#ssh.run(script, { path, parent: dirname(path), note, secret, owner, group });
    } catch (error) {
      throw (error instanceof ScriptError && this.#known(error, path, qemu)) || error;
    }
  }

  async secret(path: string): Promise<string | undefined> {
    return (await this.#ssh.run(`cat -- "$path/${SECRET}" 2>/dev/null || :`, { path })) || undefined;
  }

  async renote(path: string, note: string): Promise<void> {
    await this.#ssh.run(RENOTE, { path, note });
  }

  async setFrozen(path: string, mark: string | undefined): Promise<void> {
    const file = `"$path/${FROZEN}"`;
    if (mark === undefined) await this.#ssh.run(`rm -f ${file}`, { path });
    else await this.#ssh.run(`printf %s "$mark" > ${file}`, { path, mark });
  }

  async runThere({ name, uuid }: MarkedDomain): Promise<string> {
    return await this.#ssh.run(RUN, { pidFile: `${PID_FILES}/${name}.pid`, uuid });
  }

  async usedBytes(path: string): Promise<number> {
    const printed = await this.#ssh.run(`du -s -k -- "$path/${QEMU}" 2>/dev/null || echo 0`, { path });
    return Number.parseInt(printed, 10) * 1024;
  }

  async line(path: string): Promise<string | undefined> {
    return await livingLine(this.#ssh, `${path}/${WAY}`);
  }

  async sever(path: string, { line, signal }: CutOptions = {}): Promise<void> {
    const ssh = signal ? this.#ssh.withSignal(anySignal(this.#ssh.signal, signal)) : this.#ssh;
    await sever(ssh, `${path}/${WAY}`, line);
  }

  async remove(path: string): Promise<void> {
    await this.#ssh.run(REMOVE, { path });
  }

  #known(
    error: ScriptError,
    path: string,
    qemu: QemuUser | undefined,
  ): PreconditionError | UsageError | undefined {
    const { host } = this.#ssh.target;
    if (error.exitCode === NO_PARENT) return noParentError(`${dirname(path)} on ${host}`, error);
    if (error.exitCode === CHANGEABLE) {
      const [, who = "another user", folder = dirname(path)] =
        /^(.*) can change (.*)$/.exec(error.said) ?? [];
      return othersParentError(path, { who, folder, host, cause: error });
    }
    if (error.exitCode === NOT_ROOT && qemu) {
      return qemuUserError(qemu, `let the connection's URI log in to ${host} as root`);
    }
    return undefined;
  }
}

/**
 * What `unchangeablePath` does, there: follows `$parent` name by name, and ends if another user than root and
 * this one can change a folder on the way, or `$parent` itself.
 */
const REFUSE_CHANGEABLE = `
me=$(id -u)
ours() { [ "$1" = 0 ] || [ "$1" = "$me" ]; }
refuse() { echo "$1 can change $2" >&2; exit ${CHANGEABLE}; }
left=$parent/.; real=; links=0
while [ -n "$left" ]; do
  name=\${left%%/*}
  case $left in */*) left=\${left#*/} ;; *) left= ;; esac
  case $name in "") continue ;; ..) real=\${real%/*}; continue ;; esac
  entry=$real/$name
  holder=$(stat -c %u -- "\${real:-/}"); mode=$(stat -c %a -- "\${real:-/}")
  ours "$holder" || refuse "user $holder" "\${real:-/}"
  if [ $((0$mode & 0022)) != 0 ]; then
    safe=no
    # In a sticky folder others can't exchange what is ours; what is not there yet will be.
    if [ $((0$mode & 01000)) != 0 ]; then
      if [ "$name" = . ] || ours "$(stat -c %u -- "$entry")"; then safe=yes; fi
    fi
    if [ $safe = no ]; then
      if [ $((0$mode & 0002)) != 0 ]; then refuse everybody "\${real:-/}"; else refuse "its group" "\${real:-/}"; fi
    fi
  fi
  [ "$name" != . ] || continue
  if [ -L "$entry" ]; then
    links=$((links + 1)); [ "$links" -le 40 ] || exit ${NO_PARENT}
    target=$(readlink -- "$entry")
    case $target in /*) real= ;; esac
    left=$target/$left
  else
    real=$entry
  fi
done`;

/**
 * Prints nothing if the path does not exist; otherwise a line `KIND UID MYUID FROZEN NOTED`, then the note.
 */
const LOOK = `
[ ! -d "$parent" ] || { ${REFUSE_CHANGEABLE}
}
[ -e "$path" ] || [ -L "$path" ] || exit 0
me=$(id -u)
uid=$(stat -c %u -- "$path")
kind=folder; frozen=no; noted=no
if [ -L "$path" ] || [ ! -d "$path" ]; then kind=other; fi
if [ $kind = folder ] && { [ "$uid" = 0 ] || [ "$uid" = "$me" ]; }; then
  [ ! -f "$path/${FROZEN}" ] || frozen=${IS_FROZEN}$(tr -cd 0-9a-f/- < "$path/${FROZEN}")
  [ ! -f "$path/${NOTE}" ] || noted=noted
fi
echo "$kind $uid $me $frozen $noted"
[ $noted = no ] || cat -- "$path/${NOTE}"`;

/** Prints what `runHere` tells of this host. */
const RUN = `
start=
pid=$(cat -- "$pidFile" 2>/dev/null || :)
if [ -n "$pid" ] && tr '\\0' ' ' 2>/dev/null < "/proc/$pid/cmdline" | grep -q -F -e "$uuid"; then
  start=$(sed 's/.*) //' "/proc/$pid/stat" | cut -d ' ' -f 20)
fi
echo "$(cat ${BOOT_ID})/$start"`;

/** `mv -T` works like rename(2): it fails if the target is a folder with content, and never moves into it. */
const CREATE = `
[ -d "$parent" ] || exit ${NO_PARENT}
${REFUSE_CHANGEABLE}
if [ -n "$owner" ] && [ "$me" != 0 ] && [ "$me" != "$owner" ]; then exit ${NOT_ROOT}; fi
fresh=$(mktemp -d "$parent/.nbdpull-XXXXXX")
trap 'rm -rf "$fresh"' EXIT
printf %s "$note" > "$fresh/${NOTE}"
[ -z "$secret" ] || (umask 077; printf %s "$secret" > "$fresh/${SECRET}")
mkdir -m 700 "$fresh/${QEMU}"
if [ -n "$owner" ] && [ "$me" = 0 ]; then
  chown "$owner:$group" "$fresh/${QEMU}"
  chmod 711 "$fresh"
fi
mv -T -- "$fresh" "$path"`;

const RENOTE = `
printf %s "$note" > "$path/${NOTE}.new"
mv -T -- "$path/${NOTE}.new" "$path/${NOTE}"`;

const REMOVE = `
for folder in "$path/${QEMU}" "$path"; do
  if [ -d "$folder" ] && [ ! -L "$folder" ]; then
    find "$folder" -mindepth 1 -maxdepth 1 ! -type d -exec rm -f -- {} +
    rmdir -- "$folder"
  fi
done`;
