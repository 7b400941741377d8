#!/usr/bin/env bash
# Runs a command where libvirt and QEMU are those of a newer Debian suite (libvirt 11, QEMU 10):
#
#     test/support/with-newer-libvirt.sh vitest run test/libvirt/backup.test.ts
#
# The command sees a Debian of its own, but with this host's files below /tmp, /var/tmp, its own folder and the user's
# cache. Its processes, network and sockets are its own too, so it never meets the libvirt of the host, and everything
# that it has started ends with it. Debian is made once by debootstrap, in the user's cache folder, which takes some
# minutes; what is written there by a run is gone afterwards. Needs root.
set -euo pipefail

suite=trixie
packages=(libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
  openssh-server openssh-client gnutls-bin nbdkit libnbd-bin procps iproute2 util-linux)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts
base=$cache/$suite-libvirt
made_for="1 ${packages[*]}"
if [ "$(cat "$base/made-for" 2>/dev/null)" != "$made_for" ]; then
  mkdir -p "$cache"
  new=$(mktemp -d "$base.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  debootstrap --variant=minbase "$suite" "$new" >&2
  chmod 755 "$new"
  # No daemon is to be started by its package.
  printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
  chmod 755 "$new/usr/sbin/policy-rc.d"
  chroot "$new" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
    apt-get install --yes --quiet --no-install-recommends "${packages[@]}" >&2
  chroot "$new" apt-get clean
  echo "$made_for" >"$new/made-for"
  rm -rf "$base"
  mv -T "$new" "$base"
  trap - EXIT
fi

node=$(node -p process.execPath)
here=$PWD
export base here node cache
exec unshare --mount --net --pid --uts --ipc --fork --kill-child bash -euo pipefail -c '
  ip link set lo up
  mount --make-rprivate /
  # Not below /tmp, which the other Debian shares.
  work=/mnt
  mount -t tmpfs tmpfs "$work"
  mkdir "$work/upper" "$work/work" "$work/all"
  all=$work/all
  mount -t overlay overlay -o lowerdir="$base",upperdir="$work/upper",workdir="$work/work" "$all"
  mount -t proc proc "$all/proc"
  # Of its own: libvirt and the laboratory change what is in it. There is no KVM.
  mount -t tmpfs -o mode=755 tmpfs "$all/dev"
  node() { mknod -m "$2" "$all/dev/$1" c "$3" "$4"; }
  node null 666 1 3; node zero 666 1 5; node full 666 1 7; node random 666 1 8; node urandom 666 1 9; node tty 666 5 0
  node fuse 666 10 229; node loop-control 660 10 237
  for n in {0..31}; do mknod -m 660 "$all/dev/loop$n" b 7 "$n"; done
  mkdir -m 1777 "$all/dev/shm"; mkdir "$all/dev/pts"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$all/dev/pts"
  ln -s pts/ptmx "$all/dev/ptmx"
  ln -s /proc/self/fd "$all/dev/fd"
  for n in 0 1 2; do ln -s "/proc/self/fd/$n" "$all/dev/$(echo stdin stdout stderr | cut -d " " -f $((n + 1)))"; done
  mount --rbind /sys "$all/sys"
  mount -t tmpfs tmpfs "$all/run"
  bind() { mkdir -p "$all$1"; mount --rbind "$1" "$all$1"; }
  bind /tmp
  bind /var/tmp
  bind "$here"
  bind "$cache"
  printf "%s\n" "security_driver = \"none\"" "cgroup_controllers = []" "namespaces = []" >>"$all/etc/libvirt/qemu.conf"
  touch "$all/usr/local/bin/node"
  mount --bind "$node" "$all/usr/local/bin/node"
  unset NODE_EXTRA_CA_CERTS
  export PATH="$here/node_modules/.bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" LC_ALL=C.UTF-8
  # This shell stays the first process: it collects what daemons leave, and libvirt waits for that.
  status=0
  chroot "$all" /usr/bin/env --chdir="$here" "$@" || status=$?
  exit "$status"
' with-newer-libvirt "$@"
