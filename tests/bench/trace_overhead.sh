#!/usr/bin/env bash
# trace_overhead.sh FERRY TRACE_BENCH MODEL [ROUNDS] [BENCH-OPTION...]: what a trace costs. Runs `ferry bench throughput` on
# two ranks (1:1) with and without log.trace in turn, ROUNDS (11) times each, and compares medians of the measured time,
# which is without the writing of the file. Off: zones of the run times what one zone costs, over the run's time.
set -euo pipefail
ferry=$1 trace_bench=$2 model=$3 rounds=${4:-11}
shift $(($# < 4 ? $# : 4))
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run() { # NAME OPTION...: the measured time of each round in seconds, a line each
    local name=$1
    shift
    "$here/../support/mpirun.sh" 2 "$ferry" bench throughput --model "$model" --layout 1:1 --batch 8 --requests 16 \
        --input 64 --output 64 --repetitions 1 --set engine.threads=1 --set engine.cache_gib=0.1 --set log.level=warn \
        --json "$work/$name.json" "$@" >/dev/null
    sed -n 's/^ *"wall_s": \([0-9.e-]*\),*$/\1/p' "$work/$name.json" | sed -n 1p >>"$work/$name"
}
median() { sort -g "$1" | awk '{a[NR] = $1} END {print (a[int((NR + 1) / 2)] + a[int(NR / 2) + 1]) / 2}'; }
for ((i = 0; i < rounds; i++)); do
    run off "$@"
    run on --set log.trace="$work/trace.json" "$@"
done
off=$(median "$work/off") on=$(median "$work/on")
zones=$(sed -n 's/^ *"count": \([0-9]*\),*$/\1/p' "$work/off.json" | awk '{n += $1} END {print n / 2}')
zone_ns=$("$trace_bench" | sed -n 's/^zone_off_ns //p')
echo "$off $on $zones $zone_ns $rounds" | awk '{
    printf "off %.3f s, on %.3f s (medians of %d in turn): %+.2f %% when on\n", $1, $2, $5, ($2 / $1 - 1) * 100
    printf "%d zones of a rank, %.0f ns each: %.3f %% of the time when off\n", $3, $4, $3 * $4 * 1e-7 / $1}'
