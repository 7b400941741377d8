#!/bin/busybox sh
# The guest's first and only program. On each of three disks a database is written to, a transaction at a time; each is
# acknowledged on the serial line once it is on stable storage. At the start, what is there is checked and told.
busybox=/bin/busybox
$busybox mkdir -p /bin && $busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/libs
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console"
for module in $modules crc32c_generic libcrc32c xfs dm-mod; do
  for file in /modules/$module.ko*; do [ -e "$file" ] && insmod "$file"; done
done
while [ ! -e /dev/vda ] || [ ! -e /dev/vdb ] || [ ! -e /dev/vdc ]; do sleep 1; done

# Both values follow from the row's number, so a wrong one is known.
VALUE="replace(hex(zeroblob(400)), '00', printf('%09d', n))"
load() {
  disk=$1 journal=$2 db=/$1/db.sqlite
  mount -t ext4 /dev/$disk /$disk || echo "BAD $disk can't be mounted"
  sqlite3 $db "pragma journal_mode=$journal; create table if not exists t(n integer primary key, v text)" >/dev/null
  n=$(sqlite3 $db "select coalesce(max(n), 0) from t")
  echo "START $disk $(sqlite3 $db "pragma integrity_check") $n $(sqlite3 $db "select count(*) from t where v <> $VALUE")"
  while :; do
    n=$((n + 1))
    sqlite3 $db "pragma synchronous=full; insert into t(n, v) select n, $VALUE from (select $n as n)" && echo "ACK $disk $n"
  done
}
load_postgres() {
  mkdir -p /run/lock/lvm
  if ! lvm vgs guest >/dev/null 2>&1; then
    lvm pvcreate -qq -y /dev/vdc && lvm vgcreate -qq guest /dev/vdc
    lvm lvcreate -qq -y -Wn -Zn -l 100%FREE -n data guest && mkfs.xfs -q -f /dev/dm-0
  fi
  lvm vgchange -qq -ay guest
  mount -t xfs /dev/dm-0 /vdc || echo "BAD vdc can't be mounted"
  [ -e /vdc/data ] || { cp -a /pgdata /vdc/new && sync && mv /vdc/new /vdc/data && sync; }
  su -s /bin/sh postgres /postgres.sh load /vdc/data
}
churn() {
  i=0
  while :; do
    i=$(((i + 1) % 7))
    dd if=/dev/urandom of=/$1/churn.$i bs=64k count=$((i * 4 + 1)) 2>/dev/null
    sync -d /$1/churn.$i
    rm -f /$1/churn.$(((i + 3) % 7))
  done
}
load vda delete &
load vdb wal &
load_postgres &
sleep 2
churn vda &
churn vdb &
mkdir -p /dev/virtio-ports
while :; do
  for port in /sys/class/virtio-ports/*; do ln -sf /dev/${port##*/} /dev/virtio-ports/$(cat $port/name); done
  qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run
  sleep 1
done
