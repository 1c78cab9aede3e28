#!/bin/sh
# For `on_role_change` of [failover]: with a new role the servers begin anew. docs/share.md says why.
systemctl --no-block try-restart nfs-ganesha smbd
# What is left here of connections from when the address was here before: an NFS client comes back from the same port, would be
# answered by what is left, and wait for minutes.
exec ss --no-header --kill --tcp state fin-wait-1 '( sport = :2049 or sport = :445 )'
