#!/usr/bin/env bash
# Builds the guest of `npm run test:guest`: Debian's kernel with an initramfs of busybox, qemu-guest-agent, SQLite and
# PostgreSQL, two disks with ext4, and one that the guest makes LVM and XFS on. Takes a minute, and 300 MB below
#
#     ${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/guest
#       vmlinuz, initrd.img      what the guest boots with
#       vd[abc].qcow2            the disks as they are before its first start
#       tree                     what is in the initramfs: the guest's programs, for checks on this host
#       sqlite3, xfs_repair      run them here
#       made-for                 the digest of what the guest is made of: when it changes, it is built anew
#
# Nothing is installed: the packages are those that apt has for this Debian, unpacked.
set -euo pipefail
cd "$(dirname "$0")"

folder=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/guest
made_for=$(cat build-guest.sh init.sh postgres.sh | sha256sum)
[ "$(cat "$folder/made-for" 2>/dev/null)" = "$made_for" ] && exit 0
rm -rf "$folder"
mkdir -p "$folder/debs/partial" "$folder/root" "$folder/tree"

# No package counts as installed, so dependencies come in full, down to the C library.
: >"$folder/status"
echo "Building the guest in $folder" >&2
apt-get -qq --yes --download-only -o APT::Install-Recommends=false -o APT::Sandbox::User=root \
  -o "Dir::State::status=$folder/status" -o "Dir::Cache::archives=$folder/debs" \
  install linux-image-cloud-amd64 busybox-static qemu-guest-agent sqlite3 postgresql-15 lvm2 xfsprogs >/dev/null
root=$folder/root
for package in "$folder"/debs/*.deb; do dpkg-deb --extract "$package" "$root"; done

libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
loader=$(find "$root" -name 'ld-linux-x86-64.so.2' -type f | head -1)
tree=$folder/tree
mkdir -p "$tree"/{bin,dev,etc/lvm,lib64,libs,modules,proc,root,run,sys,tmp,usr/lib/postgresql,usr/share/postgresql,vda,vdb,vdc}
chmod 1777 "$tree/tmp"
cp "$root/bin/busybox" "$tree/bin/" 2>/dev/null || cp "$root/usr/bin/busybox" "$tree/bin/"
programs=()
for program in usr/sbin/qemu-ga usr/bin/sqlite3 sbin/lvm sbin/mkfs.xfs sbin/xfs_repair; do
  cp "$root/$program" "$tree/bin/" 2>/dev/null || cp "$root/usr/$program" "$tree/bin/"
  programs+=("$tree/bin/${program##*/}")
done
cp -r "$root/usr/lib/postgresql/15" "$tree/usr/lib/postgresql/"
cp -r "$root/usr/share/postgresql/15" "$tree/usr/share/postgresql/"
# Its compiler is never used, and large.
rm -rf "$tree"/usr/lib/postgresql/15/lib/{bitcode,llvmjit.so,pgxs}
libraries_of() {
  # Of a script, or a program without libraries, the loader lists none.
  { "$loader" --library-path "$libraries" --list "$1" 2>/dev/null || :; } | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
}
for program in "${programs[@]}" "$tree"/usr/lib/postgresql/15/bin/* "$tree"/usr/lib/postgresql/15/lib/*.so; do
  libraries_of "$program"
done | sort -u | xargs -I{} cp -L {} "$tree/libs/"
cp -L "$loader" "$tree/lib64/ld-linux-x86-64.so.2"
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console"
for module in $modules crc32c_generic libcrc32c xfs dm-mod; do
  find "$root" -name "$module.ko*" -exec cp {} "$tree/modules/" \;
done
install -m 755 init.sh "$tree/init"
install -m 755 postgres.sh "$tree/postgres.sh"
echo 'root:x:0:0::/root:/bin/sh
postgres:x:999:999::/tmp:/bin/sh' >"$tree/etc/passwd"
echo 'root:x:0:
postgres:x:999:' >"$tree/etc/group"
# There is no udev in the guest.
cat >"$tree/etc/lvm/lvm.conf" <<END
activation { udev_sync=0 udev_rules=0 }
devices { use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none" }
global { event_activation=0 use_lvmpolld=0 }
backup { backup=0 archive=0 }
END
chroot "$tree" /bin/busybox --install -s /bin
mknod -m 666 "$tree/dev/null" c 1 3

# The guest would take minutes for it.
install -d -o 999 -g 999 -m 700 "$tree/pgdata"
postgres() { chroot --userspec=999:999 "$tree" /bin/env LD_LIBRARY_PATH=/libs TZ=UTC "$@"; }
postgres /usr/lib/postgresql/15/bin/initdb -U postgres -D /pgdata -E UTF8 --locale=C --data-checksums --wal-segsize=1 \
  >"$folder/initdb.log" 2>&1 || { cat "$folder/initdb.log" >&2 && exit 1; }
cat >>"$tree/pgdata/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '/tmp'
shared_buffers = 16MB
max_connections = 10
min_wal_size = 4MB
max_wal_size = 16MB
checkpoint_timeout = 30s
jit = off
END

(cd "$tree" && find . | bin/busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$folder/initrd.img"
cp "$root"/boot/vmlinuz-* "$folder/vmlinuz"

for disk in vda vdb; do
  truncate -s 192M "$folder/$disk.raw"
  mkfs.ext4 -q -F "$folder/$disk.raw"
  qemu-img convert -f raw -O qcow2 "$folder/$disk.raw" "$folder/$disk.qcow2"
  rm "$folder/$disk.raw"
done
# XFS is 300 MB at least.
qemu-img create -q -f qcow2 "$folder/vdc.qcow2" 384M
for program in sqlite3 xfs_repair; do
  cat >"$folder/$program" <<END
#!/bin/sh
exec "$tree/lib64/ld-linux-x86-64.so.2" --library-path "$tree/libs" "$tree/bin/$program" "\$@"
END
  chmod +x "$folder/$program"
done
rm -rf "$folder"/{debs,root,status,initdb.log,lock,lock-frontend}
chmod 755 "$folder"
echo "$made_for" >"$folder/made-for"
