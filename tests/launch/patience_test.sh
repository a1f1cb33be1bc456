#!/usr/bin/env bash
# patience_test.sh FERRY SOURCE_DIR SLOW_RENAME: what takes longer than engine.stall_timeout_s and is no stall: merging results
# on one rank, gaps between requests. 0 is never.
set -uo pipefail
ferry=$1
source=$2
slow_rename=$3
source "$source/tests/support/job.sh"
"$ferry" convert "$source/configs/demo" "$work/demo" --expert-shards 2 2>/dev/null || exit 1
requests 4 >"$work/input.jsonl"
generate() { # SETTING...
    local set=() setting
    for setting in "$@"; do set+=(--set "$setting"); done
    "$source/tests/support/mpirun.sh" 2 "$ferry" generate --model "$work/demo" --input "$work/input.jsonl" \
        --output "$work/out" --set engine.threads=1 --set log.progress=off "${set[@]}" >"$work/log" 2>&1
}

FERRY_TEST_RENAME_S=11 LD_PRELOAD=$slow_rename generate engine.stall_timeout_s=5 &
first=$!
for ((i = 0; i < 600; ++i)); do [ ! -e "$work/out/completions.jsonl.tmp" ] && kill -0 "$first" && sleep 0.1 || break; done
"$ferry" generate --model "$work/demo" --input "$work/input.jsonl" --output "$work/out" --set engine.threads=1 \
    --set log.progress=off 2>"$work/second"
[ $? -eq 2 ] && grep -q "another run is writing to this folder" "$work/second" || fail "a second run while the first merges"
wait "$first" || fail "a slow merge: exit code $?"
[ "$(wc -l <"$work/out/completions.jsonl")" -eq 4 ] || fail "a slow merge lost results"
echo "ok: merging takes longer than the stall timeout, and keeps other runs out"

rm -rf "$work/out"
generate engine.stall_timeout_s=0 || fail "no stall timeout: exit code $?"
echo "ok: no stall timeout"

"$source/tests/support/mpirun.sh" 2 "$ferry" bench throughput --model "$work/demo" --layout 1:1 --arrivals fixed --rate 0.1 \
    --requests 2 --warmup 1 --repetitions 1 --input 8 --output 4 --set engine.threads=1 \
    --set engine.stall_timeout_s=5 >"$work/log" 2>&1 || fail "a gap between requests: exit code $?"
echo "ok: nothing to do for longer than the stall timeout"
