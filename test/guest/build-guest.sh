#!/usr/bin/env bash
# Builds the guest of `npm run test:guest`: Debian's kernel with an initramfs of busybox, qemu-guest-agent and SQLite,
# and two disks with ext4. Takes half a minute, and 100 MB below
#
#     ${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/guest
#       vmlinuz, initrd.img      what the guest boots with
#       vda.qcow2, vdb.qcow2     the disks as they are before its first start
#       sqlite3                  runs the guest's SQLite here
#       made-for                 the digest of what the guest is made of: when it changes, it is built anew
#
# Nothing is installed: the packages are those that apt has for this Debian, unpacked.
set -euo pipefail
cd "$(dirname "$0")"

folder=${XDG_CACHE_HOME:-$HOME/.cache}/nbd-client-ts/guest
made_for=$(cat build-guest.sh init.sh | sha256sum)
[ "$(cat "$folder/made-for" 2>/dev/null)" = "$made_for" ] && exit 0
rm -rf "$folder"
mkdir -p "$folder/debs/partial" "$folder/root" "$folder/tree"

# No package counts as installed, so dependencies come in full, down to the C library.
: >"$folder/status"
echo "Building the guest in $folder" >&2
apt-get -qq --yes --download-only -o APT::Install-Recommends=false -o APT::Sandbox::User=root \
  -o "Dir::State::status=$folder/status" -o "Dir::Cache::archives=$folder/debs" \
  install linux-image-cloud-amd64 busybox-static qemu-guest-agent sqlite3 >/dev/null
root=$folder/root
for package in "$folder"/debs/*.deb; do dpkg-deb --extract "$package" "$root"; done

libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
loader=$(find "$root" -name 'ld-linux-x86-64.so.2' -type f | head -1)
tree=$folder/tree
mkdir -p "$tree"/{bin,dev,lib64,libs,modules,proc,run,sys,tmp,vda,vdb}
cp "$root/bin/busybox" "$tree/bin/" 2>/dev/null || cp "$root/usr/bin/busybox" "$tree/bin/"
for program in "$root/usr/sbin/qemu-ga" "$root/usr/bin/sqlite3"; do
  cp "$program" "$tree/bin/"
  "$loader" --library-path "$libraries" --list "$program" | awk '$2 == "=>" { print $3 }' | xargs -I{} cp -L {} "$tree/libs/"
done
cp -L "$loader" "$tree/lib64/ld-linux-x86-64.so.2"
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console; do
  find "$root" -name "$module.ko*" -exec cp {} "$tree/modules/" \;
done
install -m 755 init.sh "$tree/init"
(cd "$tree" && find . | bin/busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$folder/initrd.img"
cp "$root"/boot/vmlinuz-* "$folder/vmlinuz"

for disk in vda vdb; do
  truncate -s 192M "$folder/$disk.raw"
  mkfs.ext4 -q -F "$folder/$disk.raw"
  qemu-img convert -f raw -O qcow2 "$folder/$disk.raw" "$folder/$disk.qcow2"
  rm "$folder/$disk.raw"
done
cat >"$folder/sqlite3" <<END
#!/bin/sh
exec "$folder/lib64/ld-linux-x86-64.so.2" --library-path "$folder/libs" "$folder/sqlite3.bin" "\$@"
END
chmod +x "$folder/sqlite3"
cp "$tree/bin/sqlite3" "$folder/sqlite3.bin"
mv "$tree/libs" "$tree/lib64" "$folder/"
rm -rf "$folder"/{debs,root,tree,status}
chmod 755 "$folder"
echo "$made_for" >"$folder/made-for"
