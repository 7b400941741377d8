#!/bin/busybox sh
# PostgreSQL of the trial's guest, in a folder of its data. Its user runs it: in the guest `postgres.sh load DATA`, and on
# the host, below the folder of the built guest, `postgres.sh judge DATA` for the data of a restored disk.
export PATH=/bin:/usr/lib/postgresql/15/bin LD_LIBRARY_PATH=/libs TZ=UTC PGHOST=/tmp PGUSER=postgres

# The value follows from the row's number, so a wrong one is known.
VALUE="repeat(md5(n::text), 25)"
ask() { psql -XAtqc "$1" postgres; }
start() { pg_ctl -D "$1" -s -w -t 300 -l "$1/log" start || cat "$1/log"; }

# Prints `ok` or what is wrong, the number of rows, and how many of them are wrong. pgbench adds the same amount to an
# account, a teller, a branch and the history in one transaction, so there is one sum.
judge() {
  verdict=ok
  pg_amcheck --all --heapallindexed --parent-check >/tmp/amcheck 2>&1 || verdict=amcheck
  pg_dumpall >/dev/null 2>/tmp/dump || verdict=$verdict,dump
  sums="select count(distinct s) from (select coalesce(sum(abalance), 0) from pgbench_accounts union all
    select coalesce(sum(tbalance), 0) from pgbench_tellers union all select coalesce(sum(bbalance), 0) from pgbench_branches
    union all select coalesce(sum(delta), 0) from pgbench_history) as sums(s)"
  [ "$(ask "$sums")" = 1 ] || verdict=$verdict,sums
  [ "$verdict" = ok ] || cat /tmp/amcheck /tmp/dump >&2
  echo "$verdict $(ask "select coalesce(max(n), 0) from t") $(ask "select count(*) from t where v <> $VALUE")"
}

case $1 in
judge)
  start "$2" && judge
  pg_ctl -D "$2" -s -w -m fast stop
  pg_checksums --check -D "$2" >/dev/null || echo "BAD checksums"
  ;;
load)
  start "$2"
  if [ -z "$(ask "select to_regclass('t')")" ]; then
    ask "create extension amcheck; create table t(n bigint primary key, v text)"
    pgbench -i -q postgres 2>/dev/null
  fi
  echo "START vdc $(judge)"
  pgbench -n -R 4 -T 100000 postgres >/dev/null 2>&1 &
  n=$(ask "select coalesce(max(n), 0) from t")
  while :; do
    n=$((n + 1))
    ask "insert into t select n, $VALUE from (values ($n)) as new(n)" && echo "ACK vdc $n"
  done
  ;;
esac
