#!/bin/bash
# The first process of a guest (../guest.rs). Its files are this machine's: what it changes of them stays in its memory, only
# $shared is the same directory. It runs the scripts that are named to it there, one at a time, and says what each ends with.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
modules=/usr/lib/uml/modules

# A root that can be changed: modprobe finds modules elsewhere only until then.
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/modules/lib /run/upper /run/work /run/root
ln -s $modules /run/modules/lib/modules
modprobe --dirname=/run/modules overlay
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay /run/root
cd /run/root
mkdir -p lib/modules
mount --bind $modules lib/modules
mount --rbind /dev dev
mkdir -p dev/shm
mount -t tmpfs tmpfs dev/shm
mount -t proc proc proc
mount -t sysfs sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p ".$shared"
mount --bind "$shared" ".$shared"

serve='
  ip link set lo up
  ip link set vec0 up
  ip address add "$address" dev vec0
  exec </dev/tty1 >/dev/tty1 2>&1
  stty raw -echo
  echo "guest ready"
  while read -r script; do
    code=0
    bash -euo pipefail "$shared/$script" </dev/null >"$shared/$script.out" 2>&1 || code=$?
    echo "guest $code"
  done'
exec chroot . env HOME=/root LC_ALL=C.UTF-8 bash -euc "$serve"
