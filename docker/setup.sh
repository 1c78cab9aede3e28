#!/bin/sh
# What two nodes need before they start: a certificate each, and a mount point. What is there stays.
#
# /pki keeps the authority's key, which no node gets.
set -eu
[ -e /pki/ca.pem ] || nasd cert ca --dir /pki
for node in nas-a nas-b; do
  [ -e "/pki/$node.pem" ] || nasd cert node --dir /pki --name "$node"
  cp -p /pki/ca.pem "/pki/$node.pem" "/pki/$node.key" "/certs/$node/"
  # The mount point may be in use.
  mkdir -p "/shared/$node/mnt" 2>/dev/null || true
done
