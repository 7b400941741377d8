#!/usr/bin/env bash
# Installs the real servers that the tests talk to, when root and when something is missing.
# Without root it only says what is missing: the tests that need it are then listed as skipped.
set -euo pipefail

packages=(qemu-utils qemu-system-x86 libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
  nbdkit libnbd-bin nbd-server gnutls-bin gcc libc6-dev python3-libnbd python3-prometheus-client systemd
  openssh-server openssh-client virtnbdbackup ceph-mon ceph-osd radosgw ceph-common curl tmux
  chromium-headless-shell man-db mandoc bash-completion zsh fish)
# They take minutes of a test that is asked for.
if [ "${NBDPULL_TEST_DEBIAN:-}" = 1 ]; then packages+=(lintian debootstrap); fi
if [ "${NBDPULL_TEST_NEWER_LIBVIRT:-}" = 1 ]; then packages+=(debootstrap); fi
if [ "${NBDPULL_TEST_GUESTFS:-}" = 1 ]; then packages+=(guestfish linux-image-cloud-amd64); fi
missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then missing+=("$package"); fi
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "Not installed: ${missing[*]}. Tests that need them are skipped (run as root on Debian to install them)." >&2
  exit 0
fi
echo "Installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
