#!/bin/sh
# Installs pjdfstest and fsx, the POSIX test suites that are crates, where they are missing. They take minutes to
# build, so they go to a cache directory outside of the working tree: $NASD_TOOLS, by default ~/.cache/nasd-tools.
# Prints the directory that holds the programs. Also called by tests/tests/posix.rs, one at a time.
set -eu
tools=${NASD_TOOLS:-$HOME/.cache/nasd-tools}
mkdir -p "$tools"
exec 9>"$tools/lock"
flock 9
install() {
    [ -x "$tools/bin/$1" ] || cargo install --quiet --root "$tools" "$1@$2" >&2
}
# Their sources say what they check, so the versions are fixed.
install pjdfstest 0.2.2
install fsx 0.3.2
echo "$tools/bin"
