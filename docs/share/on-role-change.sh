#!/bin/sh
# For `on_role_change` of [failover]: with a new role the servers begin anew. docs/share.md says why.
exec systemctl --no-block try-restart nfs-ganesha smbd
