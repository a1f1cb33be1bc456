#!/usr/bin/env bash
# enter.sh HOST COMMAND...: what Open MPI takes for ssh, between the hosts of cluster.sh.
host=$1
shift
exec "$(dirname "$0")/cluster.sh" exec "$host" /bin/sh -c "$*"
