#!/usr/bin/env bash
# exchange_bars.sh [BUILD_DIR]: what the exchange is measured by (RESULTS.md, "Transports under the exchange"): mpi and ucx
# in turns on this host, UCX's own active messages of the same block size beside them, and, where network namespaces are
# permitted, blocks of 4096 tokens between two hosts at 1 Gbit/s. ROUNDS (3) sets the turns.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
ferry=$build/launch/ferry
run() { FERRY_TEST_TIMEOUT_S=300 tests/support/mpirun.sh "$@"; }
table() { grep -v '^#' | grep -v '^$'; }
bench() { # RANKS LAYOUT TRANSPORT TOKENS: a table, and where the time of every rank goes
    run "$1" "$ferry" bench exchange --layout "$2" --transport "$3" --tokens "$4" --experts 32 --topk 8 --dim 7168 \
        --repetitions 40 --stages | table
}

echo "== 2 attention + 2 expert ranks on this host, us"
for ((round = 0; round < ${ROUNDS:-3}; round++)); do
    for transport in mpi ucx; do bench 4 2:2 $transport 1,128; done
    # Blocks of one row and of the reply to it, of 128 rows and of the reply to them; two pairs at once.
    run 4 "$build/tests/bench/ucx_pingpong" 0.5 64 14400 57600 1843200 7340032 | table
done
echo "== 1 attention + 1 expert rank, each with a core of its own"
for ((round = 0; round < ${ROUNDS:-3}; round++)); do
    for transport in mpi ucx; do bench 2 1:1 $transport 128; done
    run 2 "$build/tests/bench/ucx_pingpong" 0.5 1843200 14680064 | table
done
echo "== the first over UCX's TCP alone"
for ((round = 0; round < ${ROUNDS:-3}; round++)); do
    UCX_TLS=self,tcp bench 4 2:2 ucx 1,128
    UCX_TLS=self,tcp run 4 "$build/tests/bench/ucx_pingpong" 0.5 64 14400 1843200 | table
done

export CLUSTER_DIR=${TMPDIR:-/tmp}/exchange-bars.$$ CLUSTER_NAME=eb$(($$ % 1000)) CLUSTER_NET=10.80.$(($$ % 250))
cluster=tests/cluster/cluster.sh
if ! why=$($cluster check); then
    echo "== 1 Gbit/s: skipped, $why"
    exit 0
fi
trap '$cluster down >/dev/null 2>&1' EXIT
$cluster up 2
for host in 0 1; do
    $cluster exec "$CLUSTER_NAME$host" tc qdisc replace dev eth0 root tbf rate 1gbit burst 32kb latency 20ms
done
echo "== two hosts, 1 attention + 1 expert rank, 1 Gbit/s (125 MB/s less headers)"
for transport in mpi ucx; do
    $cluster mpirun 1 2 "$PWD/$ferry" bench exchange --layout 1:1 --tokens 4096 --experts 32 --topk 8 --dim 7168 \
        --warmup 1 --repetitions 5 --transport $transport 2>&1 | table
done
$cluster mpirun 1 2 "$PWD/$build/tests/bench/ucx_pingpong" 2 4194304 2>&1 | table
