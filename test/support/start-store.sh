#!/usr/bin/env bash
# start-store.sh FOLDER PORT MONITOR_PORT [guarded]: a Ceph of one node as plain processes on loopback, with
# everything in memory. Prints the PIDs, one a line, monitor first. The store is at http://127.0.0.1:PORT when it
# returns; its keys are AKIDTEST and secretsecretsecret, and AKIDOTHER and othersecretsecret for another user. Its
# monitor takes MONITOR_PORT and the next one. If it is guarded, "ready" is printed instead of returning; at the end of
# standard input, which comes when the process that keeps it open has died, all that was started ends, and FOLDER goes.
# It gives up after START_STORE_SECONDS (100), or as soon as a daemon has ended, and says why and the last line of each.
set -euo pipefail
folder=$(realpath -m "$1") port=$2 monitor=$3 seconds=${START_STORE_SECONDS:-100}
SECONDS=0
exec 3<&0 < /dev/null
if [ "${4:-}" = guarded ]; then
  trap : HUP INT TERM PIPE
  trap 'set +e; exec 2> /dev/null; kill -9 $(jobs -p); wait; rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"/{mon,osd,rgw,run,crash}
fsid=$(cat /proc/sys/kernel/random/uuid) osd=$(cat /proc/sys/kernel/random/uuid)
cat > "$folder/ceph.conf" <<CONF
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$monitor,v1:127.0.0.1:$((monitor + 1))]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = $folder/keyring
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
run_dir = $folder/run
admin_socket = $folder/run/\$name.\$pid.asok
crash_dir = $folder/crash
log_file = $folder/\$name.log
mon_data = $folder/mon
osd_data = $folder/osd
mon_data_avail_crit = 1
mon_data_avail_warn = 1
mon_allow_pool_size_one = true
paxos_propose_interval = 0.1
paxos_min_wait = 0.01
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
osd_memory_target = 939524096
memstore_device_bytes = 8589934592
rgw_data = $folder/rgw
rgw_frontends = beast endpoint=127.0.0.1:$port
rgw_enable_apis = s3
rgw_rados_pool_pg_num_min = 4
rgw_thread_pool_size = 64
rgw_gc_max_objs = 2
rgw_lc_max_objs = 2
rgw_override_bucket_index_max_shards = 1
rgw_dynamic_resharding = false
rgw_crypt_require_ssl = false
CONF
export CEPH_CONF=$folder/ceph.conf
keyring=$folder/keyring
ceph-authtool -C "$keyring" --gen-key -n mon. --cap mon 'allow *' > /dev/null
ceph-authtool "$keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' > /dev/null
ceph-authtool "$keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *' > /dev/null
ceph-authtool "$keyring" --gen-key -n client.rgw.x --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' > /dev/null
monmaptool --create --addv a "[v2:127.0.0.1:$monitor,v1:127.0.0.1:$((monitor + 1))]" --fsid "$fsid" "$folder/monmap" > /dev/null
declare -A daemons
step=
fail() {
  local name state line
  echo "start-store.sh: $* (after $SECONDS s)" >&2
  for name in "${!daemons[@]}"; do
    state="has ended"
    if kill -0 "${daemons[$name]}" 2> /dev/null; then state=lives; fi
    line=$(grep -ahs . "$folder"/*"$name"*.log "$folder/$name.out" | tail -n 1) || line="it has said nothing"
    echo "  $name $state: $line" >&2
  done
  if [ -n "$step" ]; then kill -9 "$step" || true; fi
  exit 1
}
expect_alive() {
  local name
  for name in "${!daemons[@]}"; do kill -0 "${daemons[$name]}" 2> /dev/null || fail "$name has ended before $1"; done
  ((SECONDS < seconds)) || fail "it takes too long: $1"
}
begin() {
  setsid "${@:2}" 3<&- > "$folder/$1.out" 2>&1 &
  daemons[$1]=$!
  echo "$!"
}
# run WHAT COMMAND...: waits for it, as long as there is time and all daemons live.
run() {
  "${@:2}" 3<&- > "$folder/step.out" 2>&1 &
  step=$!
  while kill -0 "$step" 2> /dev/null; do
    expect_alive "$1"
    sleep 0.05
  done
  wait "$step" || { step= && fail "$1 has failed: $(tail -n 1 "$folder/step.out")"; }
  step=
}
user() { run "making user $1" radosgw-admin -n client.rgw.x user create --uid="$1" --display-name="$1" --access-key="$2" --secret-key="$3"; }
answers() { curl -s -m "$1" -o /dev/null "http://127.0.0.1:$port/"; }

run "making the monitor" ceph-mon --mkfs -i a --monmap "$folder/monmap" --keyring "$keyring"
begin mon ceph-mon -f -i a
run "naming the OSD" ceph osd new "$osd" 0
run "making the OSD" ceph-osd -i 0 --mkfs --osd-uuid "$osd"
begin osd ceph-osd -f -i 0
begin rgw radosgw -f -n client.rgw.x
until answers 2; do
  expect_alive "its first answer"
  sleep 0.1
done
user mine AKIDTEST secretsecretsecret
user other AKIDOTHER othersecretsecret
# It has to live still.
answers 30 || fail "the store has stopped answering"
expect_alive "its last answer"
if [ "${4:-}" = guarded ]; then
  echo ready
  cat <&3 > /dev/null
fi
