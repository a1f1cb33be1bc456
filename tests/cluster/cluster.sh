#!/usr/bin/env bash
# cluster.sh: several hosts on one machine: network, host name, IPC and /dev/shm of their own, everything else shared.
#   cluster.sh check               exit 0 when this machine permits it, else says why not
#   cluster.sh up N [SWITCH]       hosts 0 .. N-1 on a kernel bridge, or on tests/cluster/switch.cpp's program
#   cluster.sh exec HOST CMD...    runs CMD there
#   cluster.sh mpirun RANKS-PER-HOST RANKS CMD...   one job over all hosts, block by block
#   cluster.sh down                ends every process there and removes all
# CLUSTER_DIR, CLUSTER_NAME and CLUSTER_NET keep clusters apart that exist at the same time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${CLUSTER_DIR:-/tmp/ferry-cluster}
name=${CLUSTER_NAME:-fy}
net=${CLUSTER_NET:-10.78.0}
export CLUSTER_DIR=$dir CLUSTER_NAME=$name CLUSTER_NET=$net

check() {
    [ "$(id -u)" = 0 ] || { echo "needs root"; return 1; }
    local tool
    for tool in ip nsenter unshare mount; do
        command -v $tool >/dev/null || { echo "needs $tool"; return 1; }
    done
    ip netns add "${name}check" 2>/dev/null || { echo "network namespaces are not permitted here"; return 1; }
    ip netns del "${name}check"
    unshare --uts --ipc --mount true 2>/dev/null || { echo "unshare is not permitted here"; return 1; }
}

up() {
    local n=$1 program=${2:-} i host
    mkdir -p "$dir"
    echo "$n" >"$dir/num"
    local hosts=()
    { echo "127.0.0.1 localhost"; for ((i = 0; i < n; i++)); do echo "$net.$((i + 1)) $name$i"; done; } >"$dir/hosts"
    for ((i = 0; i < n; i++)); do ip netns add "$name$i"; hosts+=("$name$i"); done
    if [ -n "$program" ]; then
        [ -e /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c 10 200; }
        "$program" "$dir/switch" "${hosts[@]}" >"$dir/switch.log" 2>&1 </dev/null &
        echo $! >"$dir/switch.pid"
        until grep -q ports "$dir/switch.log"; do kill -0 "$(cat "$dir/switch.pid")" && sleep 0.01; done
    else
        ip netns add "${name}sw"
        ip -n "${name}sw" link add br0 type bridge
        ip -n "${name}sw" link set br0 up
        for ((i = 0; i < n; i++)); do
            ip link add eth0 netns "$name$i" type veth peer name "v$i" netns "${name}sw"
            ip -n "${name}sw" link set "v$i" master br0 up
        done
    fi
    for ((i = 0; i < n; i++)); do
        host=$name$i
        mkdir -p "$dir/$host"
        ip -n "$host" addr add "$net.$((i + 1))/24" dev eth0
        ip -n "$host" link set eth0 up
        ip -n "$host" link set lo up
        ip netns exec "$host" unshare --uts --ipc --mount sh -c "hostname $host
            mount --bind $dir/hosts /etc/hosts
            mount -t tmpfs -o size=4g tmpfs /dev/shm
            echo 4 >/proc/sys/net/ipv4/tcp_retries2
            touch $dir/$host/ready
            exec sleep infinity" </dev/null >/dev/null 2>&1 &
        echo $! >"$dir/$host/pid"
    done
    for host in "${hosts[@]}"; do until [ -e "$dir/$host/ready" ]; do sleep 0.01; done; done
}

job() { # RANKS-PER-HOST RANKS CMD...: on the first hosts, as many as that takes
    local per_host=$1 ranks=$2 i list=
    shift 2
    for ((i = 0; i < $(cat "$dir/num") && i * per_host < ranks; i++)); do list+="${list:+,}$name$i:$per_host"; done
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    # mpirun waits for minutes for the daemon of a host that is cut off, unless keepalives (and tcp_retries2 above, once
    # something was sent) tell it. Ferry's own watchdog (6 s) shall be first, so that the exit code is Ferry's.
    exec "$here/cluster.sh" exec "${name}0" mpirun --host "$list" -n "$ranks" --bind-to none \
        --mca mpi_yield_when_idle 1 --mca plm rsh --mca plm_rsh_agent "$here/enter.sh" \
        --mca oob_tcp_if_include eth0 --mca oob_tcp_keepalive_time 9 --mca oob_tcp_keepalive_intvl 1 \
        --mca oob_tcp_keepalive_probes 3 --mca pml ob1 --mca btl self,vader,tcp --mca btl_tcp_if_include eth0 \
        -x CLUSTER_DIR -x CLUSTER_NAME -x CLUSTER_NET "$@"
}

down() {
    local space process
    for space in $(ip netns list | awk '{print $1}' | grep "^$name[0-9s]" || true); do
        for process in $(ip netns pids "$space"); do kill -KILL "$process" 2>/dev/null || true; done
        ip netns del "$space"
    done
    [ -e "$dir/switch.pid" ] && kill "$(cat "$dir/switch.pid")" 2>/dev/null
    rm -rf "$dir"
}

command=$1
shift
case $command in
    check) check ;;
    up) up "$@" ;;
    exec)
        host=$1
        shift
        exec nsenter -t "$(cat "$dir/$host/pid")" -n -u -i -m --wd="$PWD" -- "$@"
        ;;
    mpirun) job "$@" ;;
    down) down ;;
    *) echo "cluster.sh: no command $command" >&2; exit 2 ;;
esac
