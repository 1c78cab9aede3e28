#!/bin/bash
# The servers of one node, on its host. All of theirs is in the directory $1; a line that somebody writes to `control` there
# starts them anew, with the mounts that there are then.
set -eu
cd "$1"
mkdir -p private lock state cache ncalrpc

# With a process namespace, which ends all of them at once, and directories of their own where the paths are fixed.
# All of them hold the lock: when it is free, those before are gone, and their ports are free.
servers='
  exec 9>alive
  flock 9
  mount -t tmpfs tmpfs /run
  mount -t tmpfs tmpfs /var/lib/nfs
  mkdir /run/rpcbind
  rpcbind -f &
  until rpcinfo -p 127.0.0.1 >/dev/null 2>&1; do sleep 0.05; done
  ganesha.nfsd -F -f ganesha.conf -L ganesha.log -N EVENT -p ganesha.pid &
  smbd -F -s smb.conf -l . &
  wait'

while :; do
  unshare --mount --propagation private --pid --fork --kill-child --mount-proc bash -euc "$servers" &
  running=$!
  # Of two who write at the same time one may find nobody left: nothing to read is a line as well.
  read -r _ <control || true
  kill -KILL $running
  wait $running || true
done
