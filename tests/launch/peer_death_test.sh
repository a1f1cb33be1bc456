#!/usr/bin/env bash
# peer_death_test.sh FERRY SOURCE_DIR: over UCX, an expert rank is killed by SIGKILL in mid-run. The others must say who is lost,
# and the job must end within 10 s with exit code 5: over shared memory, which UCX does not watch, and over its TCP.
set -uo pipefail
ferry=$1
source=$2
source "$source/tests/support/job.sh"
"$ferry" convert "$source/configs/demo" "$work/demo" --expert-shards 2 2>/dev/null || exit 1
for i in $(seq 1 1000); do # far more than can be done before the kill
    echo "{\"id\":\"r$i\",\"prompt\":\"Emma was number $i, and\",\"max_tokens\":$((20 + i % 40)),\"ignore_eos\":true}"
done >"$work/input.jsonl"

for transports in default self,tcp; do
    [ $transports = default ] || export UCX_TLS=$transports
    rm -rf "$work/out"
    setsid "$source/tests/support/mpirun.sh" 3 "$ferry" generate --model "$work/demo" --input "$work/input.jsonl" \
        --output "$work/out" --set engine.threads=1 --set engine.max_batch=4 --set log.progress=off \
        --set exchange.transport=ucx --set layout.mode=disaggregated --set layout.attention_ranks=1 \
        --set layout.expert_ranks=2 >"$work/log" 2>&1 &
    job=$!
    until [ -s "$work/out/part-00000.jsonl" ] || ! kill -0 "$job" 2>/dev/null; do sleep 0.05; done
    victim=$(rank_process 2)
    [ -n "$victim" ] || fail "UCX_TLS $transports: the run was over before rank 2 could be killed"
    # shellcheck disable=SC2086
    kill -KILL $victim
    begin=$(now_ms)
    wait "$job"
    code=$?
    took_ms=$(($(now_ms) - begin))
    job=
    echo "UCX_TLS $transports: exit code $code, $took_ms ms after the kill"
    [ "$code" -eq 5 ] || fail "exit code $code"
    [ "$took_ms" -le 10000 ] || fail "the job ended $took_ms ms after the kill"
    grep -q "rank 2 on [^ ]* is lost" "$work/log" || fail "nobody names rank 2"
    [ ! -e "$work/out/completions.jsonl" ] || fail "the run was over before the kill"
done
