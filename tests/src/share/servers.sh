#!/bin/bash
# The servers of one node, in a network, mount and process namespace of their own. All of theirs is in the directory $1; a
# line that somebody writes to `control` there starts them anew.
set -eu
cd "$1"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/nfs
mkdir -p private lock state cache ncalrpc /run/rpcbind
rpcbind -f &
until rpcinfo -p 127.0.0.1 >/dev/null 2>&1; do sleep 0.05; done
while :; do
  ganesha.nfsd -F -f ganesha.conf -L ganesha.log -N EVENT -p ganesha.pid &
  nfs=$!
  smbd -F -s smb.conf -l . &
  smb=$!
  read -r _ <control
  kill $nfs $smb
  # Ganesha may end by a signal.
  wait $nfs $smb || true
done
