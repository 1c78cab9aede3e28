#!/bin/sh
# PostgreSQL beside a node: makes its cluster, once, and then follows the node's role.
#
# PGHOST names this PostgreSQL and the other one; PGPASSWORD is its superuser's.
set -eu
data=/var/lib/postgresql/data
wal=/srv/nasd/mnt/pg_wal

# A field of the node's status.
node() {
  nasd status --json 2>/dev/null | sed -n "s/^  \"$1\": \"\(.*\)\",\$/\1/p"
}

# Waits until the node serves as one or the other; says which.
role() {
  while true; do
    role=$(node role)
    case "$role $(node state)" in
      "primary in-sync" | "primary degraded" | "secondary in-sync" | "secondary catch-up") break ;;
    esac
    sleep 1
  done
  echo "$role"
}

as_postgres() {
  setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"
}

# A file for postgres alone.
private() {
  install -m 600 -o postgres -g postgres /dev/null "$1"
  cat >"$1"
}

chown postgres: /var/lib/postgresql

# A cluster whose log is on the volume needs nothing more.
if [ ! -L $data/pg_wal ]; then
  if [ "$(role)" = primary ]; then
    # With a log on the volume there was a cluster, which this node does not have.
    if [ ! -e $data ] && [ ! -e $wal ]; then
      rm -rf $data.new
      echo "$PGPASSWORD" | private /run/postgresql/password
      as_postgres initdb -D $data.new --data-checksums --locale=C.UTF-8 \
        --auth-local=peer --auth-host=scram-sha-256 --pwfile=/run/postgresql/password
      rm /run/postgresql/password
      echo "listen_addresses = '*'" >>$data.new/postgresql.conf
      echo "host all all all scram-sha-256" >>$data.new/pg_hba.conf
      echo "host replication postgres samenet scram-sha-256" >>$data.new/pg_hba.conf
      mv $data.new $data
    fi
    nasd pg adopt
  else
    echo "*:*:*:postgres:$PGPASSWORD" | private /var/lib/postgresql/.pgpass
    until [ -d $wal ]; do
      sleep 1
    done
    until nasd pg clone --from "host=$PGHOST user=postgres target_session_attrs=read-write"; do
      sleep 1
    done
    rm /var/lib/postgresql/.pgpass
  fi
fi
exec nasd pg follow
