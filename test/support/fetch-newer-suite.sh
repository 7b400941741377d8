#!/usr/bin/env bash
# Fetches the NBD servers and clients of a newer Debian suite, for the tests that want extended headers, beside those
# of the system and without touching its packages. What apt verifies is unpacked into
#
#     ${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/trixie
#       bin/qemu-nbd, bin/nbdinfo, ...   run the programs by the suite's own loader and libraries
#       usr/, lib                        the unpacked packages, and where their libraries are
#       made-for                         the digest of this script: when it changes, they are fetched anew
#
# Works with any user. Where it can't be had the tests that need it are listed as skipped; with CI=true that is a
# failure. It comes from the mirror that apt is configured for.
set -euo pipefail

suite=trixie
packages=(nbdkit libnbd-bin qemu-utils)
programs=(nbdkit nbdinfo nbdcopy qemu-img qemu-io qemu-nbd qemu-storage-daemon)

folder=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/$suite
made_for=$(sha256sum <"$0")
[ "$(cat "$folder/made-for" 2>/dev/null)" = "$made_for" ] && exit 0

missing="No NBD programs of Debian $suite"
# shellcheck source=test/support/fetching.sh
. "${0%/*}/fetching.sh"
mkdir -p "${folder%/*}"
work=$(mktemp -d "$folder.XXXXXX")

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "this is no Debian"
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirrors=$(apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/$codename/InRelease'.*|\1|p")
mirror=${mirrors%%$'\n'*}
[ -n "$mirror" ] || fail "apt has no mirror for the suite $codename"

# An apt that has nothing in common with the system's but how to reach the mirror: no package counts as installed, so
# that dependencies come in full, down to the C library.
architecture=$(dpkg --print-architecture)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt=$work/apt
mkdir -p "$apt"/{none,state/lists/partial,cache/archives/partial}
: >"$apt/status"
echo "deb [arch=$architecture$([ -r $keyring ] && echo " signed-by=$keyring")] $mirror $suite main" >"$apt/sources.list"
{
  apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets'
  cat <<END
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
APT::Architectures { "$architecture"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Dir::Cache "$apt/cache";
Dir::Etc::main "$apt/none/apt.conf";
Dir::Etc::parts "$apt/none";
Dir::Etc::preferences "$apt/none/preferences";
Dir::Etc::preferencesparts "$apt/none";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/none";
Dir::State "$apt/state";
Dir::State::status "$apt/status";
END
} >"$apt/apt.conf"
export APT_CONFIG=$apt/apt.conf

echo "Fetching ${packages[*]} of Debian $suite into $folder" >&2
apt-get update -qq --error-on=any
apt-get install -qq --yes --download-only "${packages[@]}" >/dev/null
for package in "$apt"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work"; done
rm -rf "$apt" "$work"/usr/share "$work"/etc "$work"/var

# The loader's path is an architecture's own affair.
loader=$(cd "$work" && echo usr/lib*/ld-linux*.so.*)
libraries=$(cd "$work" && echo usr/lib/*-linux-gnu*)
[ -x "$work/$loader" ] && [ -d "$work/$libraries" ] || fail "the C library is not where it should be"
ln -s "$libraries" "$work/lib"
mkdir "$work/bin"
for program in "${programs[@]}"; do
  [ -x "$work/usr/bin/$program" ] || fail "$program is in none of the packages"
  cat >"$work/bin/$program" <<END
#!/bin/sh
here=\${0%/*}/..
exec "\$here/$loader" --library-path "\$here/lib" --argv0 $program "\$here/usr/bin/$program" "\$@"
END
  chmod +x "$work/bin/$program"
  "$work/bin/$program" --version >/dev/null || fail "$program does not run here"
done
echo "$made_for" >"$work/made-for"
chmod 755 "$work"

# Whoever comes second finds a folder that is as good as its own.
[ "$(cat "$folder/made-for" 2>/dev/null)" = "$made_for" ] || rm -rf "$folder"
mv -T "$work" "$folder" 2>/dev/null || [ -e "$folder/made-for" ] || fail "$folder can't be put in place"
