#!/usr/bin/env bash
# cluster_test.sh FERRY SOURCE_DIR SWITCH TRACE_CHECK: jobs over four hosts (cluster.sh) with real TCP between them. The same bytes
# as one rank, on a bridge, at 1 Gbit/s (tbf), and with 0.5 ms of delay; then a link that is cut in mid-run: every rank
# that can be reached says where it is, the job ends with exit code 5, and goes on elsewhere, nothing lost or doubled.
# FERRY_TEST_TRANSPORT names the transport (default: auto).
set -uo pipefail
ferry=$1
source=$2
switch=$3
trace_check=$4
cluster=$source/tests/cluster/cluster.sh
export CLUSTER_DIR CLUSTER_NAME=fy$(($$ % 10000))h CLUSTER_NET=10.78.$(($$ % 250))
CLUSTER_DIR=$(mktemp -d)/cluster
source "$source/tests/support/job.sh"
trap '"$cluster" down 2>/dev/null; cleanup; rm -rf "$(dirname "$CLUSTER_DIR")"' EXIT

if ! why=$("$cluster" check); then
    echo "SKIPPED: $why"
    exit 77
fi
"$ferry" convert "$source/configs/demo" "$work/demo" --expert-shards 2 2>/dev/null || exit 1
requests 12 >"$work/input.jsonl"
requests 60 >"$work/long.jsonl"
input=input
common=(--model "$work/demo" --set output.timings=false --set log.progress=off
    --set engine.threads=1 --set engine.max_batch=4)
[ -z "${FERRY_TEST_TRANSPORT:-}" ] || common+=(--set "exchange.transport=$FERRY_TEST_TRANSPORT")
for i in input long; do
    "$ferry" generate "${common[@]}" --input "$work/$i.jsonl" --output "$work/one-$i" 2>"$work/log" || { cat "$work/log"; exit 1; }
done

start() { # RANKS-PER-HOST RANKS SETTING...
    local per_host=$1 ranks=$2 set=() setting
    shift 2
    for setting in "$@"; do set+=(--set "$setting"); done
    timeout -k 2 100 "$cluster" mpirun "$per_host" "$ranks" "$ferry" generate "${common[@]}" "${set[@]}" \
        --input "$work/$input.jsonl" --output "$work/out" >"$work/log" 2>&1
}
compare() { # LABEL PER-HOST RANKS SETTING...
    local label=$1 begin=$SECONDS
    shift
    rm -rf "$work/out"
    start "$@" || fail "$label: $*: exit code $?"
    cmp "$work/one-$input/completions.jsonl" "$work/out/completions.jsonl" || fail "$label: $*: other bytes than one rank"
    echo "ok: $label: $* ($((SECONDS - begin)) s)"
}
d=layout.mode=disaggregated

"$cluster" up 4 || fail "cluster.sh up"
compare bridge 1 4 $d layout.attention_ranks=2 layout.expert_ranks=2 engine.micro_batches=2
grep -q "${CLUSTER_NAME}3 .* 1 " "$work/log" || fail "the layout's table does not name host 3"
transports=mpi,ucx
case $("$ferry" --version) in *UCX*"not built in"*"transport ucx"*) transports=mpi ;; esac
timeout -k 2 60 "$cluster" mpirun 1 4 "$ferry" bench exchange --layout 2:2 --dim 512 --tokens 0,1,64 --warmup 1 \
    --transport $transports --repetitions 5 --json "$work/bench.json" >"$work/log" 2>&1 || fail "bench exchange: exit code $?"
grep -q "\"hosts\": \"${CLUSTER_NAME}0 ${CLUSTER_NAME}1 ${CLUSTER_NAME}2 ${CLUSTER_NAME}3\"" "$work/bench.json" ||
    fail "bench exchange does not name its hosts"
echo "ok: bench exchange over four hosts"
compare bridge 2 7 $d layout.attention_ranks=2 layout.expert_ranks=5 layout.tp_size=2 engine.micro_batches=3
compare bridge 1 4 layout.tp_size=4 exchange.mode=sized
for i in 0 1 2 3; do
    "$cluster" exec "$CLUSTER_NAME$i" tc qdisc replace dev eth0 root tbf rate 1gbit burst 32kb latency 20ms ||
        echo "tc has no tbf here: the rate stays"
done
compare "1 Gbit/s" 2 5 $d layout.attention_ranks=3 layout.expert_ranks=2 exchange.mode=bounded engine.micro_batches=2
"$cluster" down

if [ ! -x "$switch" ]; then
    echo "SKIPPED from here: no switch program"
    exit 0
fi
"$cluster" up 4 "$switch" || fail "cluster.sh up with the switch: $(cat "$CLUSTER_DIR/switch.log")"
echo "delay 500" >"$CLUSTER_DIR/switch"
echo "rate 1000" >"$CLUSTER_DIR/switch"
compare "0.5 ms" 1 4 $d layout.attention_ranks=2 layout.expert_ranks=2 engine.micro_batches=2
# Four hosts, the clock of every process with a zero of its own: no arrow goes back in time by more than the error that the
# trace states, half of the quickest answer's way there and back.
compare "0.5 ms" 1 4 $d layout.attention_ranks=2 layout.expert_ranks=2 log.trace="$work/trace.json"
"$trace_check" "$work/trace.json" >"$work/log" || fail "the trace over four hosts"
grep -qE "^4 ranks, [1-9][0-9]* spans, [1-9][0-9]* flows, .* 0 problems" "$work/log" || fail "a trace without flows"
errors=$(sed -n 's/.*"rank":[1-9].*"clock_error_us":\([0-9]*\).*/\1/p' "$work/trace.json" | tr '\n' ' ')
for error in $errors; do
    [ "$error" -ge 450 ] && [ "$error" -le 50000 ] || fail "clocks known to $errors us"
done
echo "ok: trace over four hosts, clocks known to $errors us"

# One rank of four hosts is killed: the others say which, and the job goes on where it was.
rm -rf "$work/out"
input=long
start 1 4 $d layout.attention_ranks=2 layout.expert_ranks=2 engine.micro_batches=2 &
job=$!
until grep -qs "exchange.transport" "$work/log" || ! kill -0 $job 2>/dev/null; do sleep 0.02; done
victim=$(rank_process 2)
until [ -s "$work/out/part-00000.jsonl" ] || ! kill -0 $job 2>/dev/null; do sleep 0.02; done
kill -KILL $victim || fail "no rank 2 to kill"
begin=$(date +%s)
wait $job
code=$?
job=
took=$(($(date +%s) - begin))
[ $code -eq 5 ] || fail "rank killed: exit code $code"
[ $took -le 15 ] || fail "rank killed: the job ended after $took s"
grep -qE "rank 2 on ${CLUSTER_NAME}2 is lost|lost rank 2 on ${CLUSTER_NAME}2" "$work/log" || fail "the killed rank is not named"
[ ! -e "$work/out/completions.jsonl" ] || fail "the run was over before the kill"
finished=$(cat "$work/out"/part-*.jsonl | wc -l)
start 1 4 $d layout.attention_ranks=2 layout.expert_ranks=2 || fail "resuming after a kill: exit code $?"
cmp "$work/one-$input/completions.jsonl" "$work/out/completions.jsonl" || fail "resumed after a kill: other bytes than one rank"
echo "ok: exit code 5 $took s after a rank was killed, resumed with $finished of 60 requests kept"
input=input

# Host 3 is cut off once some requests are finished.
rm -rf "$work/out"
start 1 4 $d layout.attention_ranks=2 layout.expert_ranks=2 engine.micro_batches=2 &
job=$!
until [ -s "$work/out/part-00000.jsonl" ] || ! kill -0 $job 2>/dev/null; do sleep 0.05; done
echo "down 3" >"$CLUSTER_DIR/switch"
begin=$(date +%s)
wait $job
code=$?
job=
took=$(($(date +%s) - begin))
echo "link cut: exit code $code after $took s"
[ $code -eq 5 ] || fail "link cut: exit code $code"
[ $took -le 25 ] || fail "link cut: the job ended after $took s"
grep -q "stopping: rank 3 on ${CLUSTER_NAME}3 is lost (silent" "$work/log" || fail "the lost rank is not named"
[ "$(grep -c "is at step [0-9]*, layer [0-9]*, micro-batch [0-9]" "$work/log")" -ge 2 ] || fail "no stall report"
finished=$(cat "$work/out"/part-*.jsonl | wc -l)
[ "$finished" -ge 1 ] || fail "nothing was kept"
[ ! -e "$work/out/completions.jsonl" ] || fail "the run was over before the cut"
# Without host 3, on another layout.
start 1 3 layout.tp_size=1 || fail "resuming: exit code $?"
cmp "$work/one-$input/completions.jsonl" "$work/out/completions.jsonl" || fail "resumed: other bytes than one rank"
echo "ok: resumed on 3 hosts with $finished of 12 requests kept"

# Hosts that have IPv4 for themselves only, and IPv6 between them.
if [ -e /proc/net/if_inet6 ]; then
    "$cluster" down
    "$cluster" up 2 || fail "cluster.sh up"
    echo "127.0.0.1 localhost" >"$CLUSTER_DIR/hosts"
    for i in 0 1; do
        ip -n "$CLUSTER_NAME$i" addr del "$CLUSTER_NET.$((i + 1))/24" dev eth0
        ip -n "$CLUSTER_NAME$i" addr add "fd07::$((i + 1))/64" dev eth0 nodad
        echo "fd07::$((i + 1)) $CLUSTER_NAME$i" >>"$CLUSTER_DIR/hosts"
    done
    rm -rf "$work/out"
    OMPI_MCA_btl_tcp_disable_family=4 start 1 2 exchange.transport=mpi || fail "IPv6: exit code $?"
    grep "cannot reach rank 0" "$work/log" && fail "IPv6: no watchdog"
    cmp "$work/one-$input/completions.jsonl" "$work/out/completions.jsonl" || fail "IPv6: other bytes than one rank"
    echo "ok: over IPv6 alone"
fi
