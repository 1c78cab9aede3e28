#!/bin/sh
# Installs smbprotocol, an SMB client that can flush, where it is missing: beside the tools of install-tools.sh.
# Prints the Python that has it. Called by tests/tests/share.rs.
set -eu
tools=${NASD_TOOLS:-$HOME/.cache/nasd-tools}
mkdir -p "$tools"
exec 9>"$tools/lock"
flock 9
python=$tools/smb/bin/python
"$python" -c 'import smbclient' 2>/dev/null || {
    python3 -m venv --clear "$tools/smb"
    "$python" -m pip install --quiet --disable-pip-version-check smbprotocol==1.17.0
} >&2
echo "$python"
