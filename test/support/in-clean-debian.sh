#!/usr/bin/env bash
# Installs a package in a Debian that has only what every Debian has, tries the command, removes and purges it:
#
#     in-clean-debian.sh PACKAGE.deb
#
# The Debian is made once by debootstrap, in the user's cache folder, and stays as it is: what is written goes elsewhere.
# Needs root.
set -euo pipefail

package=$(realpath "$1")
base=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/debian-bookworm
if [ ! -d "$base" ]; then
  new=$(mktemp -d "$base.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  debootstrap --variant=minbase bookworm "$new" >&2
  chmod 755 "$new"
  mv -T "$new" "$base"
  trap - EXIT
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -d "$work/root"
export base package work
unshare --mount bash -euo pipefail -c '
  mount -t tmpfs tmpfs "$work/root"
  mkdir "$work/root/upper" "$work/root/work" "$work/root/all"
  all=$work/root/all
  mount -t overlay overlay -o lowerdir="$base",upperdir="$work/root/upper",workdir="$work/root/work" "$all"
  mount -t proc proc "$all/proc"
  mount --rbind /dev "$all/dev"
  cp "$package" "$all/nbdpull.deb"
  exec chroot "$all" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 bash -euo pipefail -x -c "
    if command -v node; then exit 1; fi
    apt-get install --yes /nbdpull.deb
    nbdpull --version
    nbdpull demo
    nbdpull init /srv/backups
    nbdpull points /srv/backups
    echo repository = \\\"/srv/backups\\\" >>/etc/nbdpull.toml
    nbdpull points
    test -L /usr/bin/nbdpull -a -s /usr/lib/systemd/system/nbdpull-run.timer -a -s /usr/share/bash-completion/completions/nbdpull
    mkdir -p /etc/systemd/system/timers.target.wants
    ln -s /lib/systemd/system/nbdpull-run.timer /etc/systemd/system/timers.target.wants/
    dpkg --install /nbdpull.deb
    tail -1 /etc/nbdpull.toml
    dpkg --remove nbdpull
    test -s /etc/nbdpull.toml -a ! -e /usr/lib/nbdpull -a ! -L /etc/systemd/system/timers.target.wants/nbdpull-run.timer
    dpkg --purge nbdpull
    test ! -e /etc/nbdpull.toml -a ! -e /var/cache/nbdpull -a -d /srv/backups
    echo all done
  "
'
