#!/bin/sh
# Makes the images that compose.yaml names, without a registry: Debian by debootstrap, Rust by this machine's own. DEBIAN
# and RUST name images to take instead. Images that are there already stay, so the second time is quick.
#
# docker-images.sh NASD   with this binary in them
# docker-images.sh        with what the Dockerfile compiles: takes as long as that takes
set -eu
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

debian=${DEBIAN:-nasd-test-debian}
rust=${RUST:-nasd-test-rust}
roots=/etc/ssl/certs/ca-certificates.crt

is_missing() {
  ! docker image inspect "$1" >/dev/null 2>&1
}

# The host's network, since that is where packages come from.
build() {
  docker build --quiet --network host --build-arg DEBIAN="$debian" --build-arg RUST="$rust" "$@"
}

if [ -z "${DEBIAN:-}" ] && is_missing "$debian"; then
  echo "making $debian by debootstrap: takes a minute, once"
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
  debootstrap --variant=minbase --include=ca-certificates bookworm "$scratch/debian" "$mirror" >"$scratch/log" || {
    tail -n 3 "$scratch/log" >&2
    exit 1
  }
  rm -rf "$scratch"/debian/var/cache/apt/archives/*.deb "$scratch"/debian/var/lib/apt/lists/*
  # This machine's way to packages.
  apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-)' >"$scratch/debian/etc/apt/apt.conf.d/as-outside" || true
  [ ! -e $roots ] || cp -L $roots "$scratch/debian$roots"
  tar -C "$scratch/debian" -c . | docker import - "$debian" >/dev/null
fi

if [ $# = 0 ]; then
  if [ -z "${RUST:-}" ] && is_missing "$rust"; then
    echo "making $rust of this machine's own Rust"
    printf '%s\n' "FROM $debian" "COPY bin /usr/local/bin" "COPY lib /usr/local/lib" >"$scratch/Dockerfile"
    tar -c --exclude=lib/rustlib/src -C "$scratch" Dockerfile -C "$(rustc --print sysroot)" bin/cargo bin/rustc lib |
      docker build --quiet --tag "$rust" - >/dev/null
  fi
  build --target nasd --tag nasd . >/dev/null
  build --target postgres --tag nasd-postgres . >/dev/null
else
  strip -o "$scratch/nasd" "$1"
  for of in "runtime nasd" "runtime-postgres nasd-postgres"; do
    set -- $of
    build --target "$1" --tag "nasd-test-$1" . >/dev/null
    printf '%s\n' "FROM nasd-test-$1" "COPY nasd /usr/local/bin/nasd" >"$scratch/Dockerfile"
    tar -c -C "$scratch" Dockerfile nasd | docker build --quiet --tag "$2" - >/dev/null
  done
fi
build --target etcd --tag nasd-etcd . >/dev/null
docker image prune --force >/dev/null
for image in "$debian" nasd nasd-postgres nasd-etcd; do
  docker image inspect --format "$image: {{.Size}} bytes" "$image"
done
