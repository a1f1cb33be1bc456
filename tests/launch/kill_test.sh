#!/usr/bin/env bash
# kill_test.sh FERRY SOURCE_DIR: ranks killed by SIGKILL at random moments, again and again. Each time the job must end
# within 10 s with exit code 5, keep every finished request, and go on where it stopped, on another layout; the final
# file must be that of a run that nobody disturbed. Then SIGTERM and SIGUSR1 to all ranks: drained, exit code 75.
# FERRY_KILLS: how many (default 20). FERRY_KILL_SEED repeats a run, FERRY_TEST_TRANSPORT names the
# transport (default: auto).
set -uo pipefail
ferry=$1
source=$2
kills=${FERRY_KILLS:-20}
seed=${FERRY_KILL_SEED:-$RANDOM}
source "$source/tests/support/job.sh"
RANDOM=$seed
echo "FERRY_KILL_SEED=$seed"

"$ferry" convert "$source/configs/demo" "$work/demo" --expert-shards 2 2>/dev/null || exit 1
common=(--model "$work/demo" --set output.timings=false --set log.progress=off --set engine.threads=1
    --set engine.max_batch=4)
[ -z "${FERRY_TEST_TRANSPORT:-}" ] || common+=(--set "exchange.transport=$FERRY_TEST_TRANSPORT")
input=$work/input.jsonl # of the runs to come
one_rank() { # COUNT: what that many requests give undisturbed on one rank
    rm -rf "$work/one"
    requests "$1" >"$input"
    "$ferry" generate "${common[@]}" --input "$input" --output "$work/one" 2>"$work/log" || fail "on one rank"
}
one_rank 18

d="layout.mode=disaggregated"
layouts=("2 $d layout.attention_ranks=1 layout.expert_ranks=1 engine.micro_batches=2"
    "3 layout.tp_size=1"
    "3 $d layout.attention_ranks=2 layout.expert_ranks=1 layout.tp_size=2"
    "4 $d layout.attention_ranks=1 layout.expert_ranks=3"
    "4 layout.tp_size=2 exchange.mode=sized"
    "1")

children() { cat "/proc/$1/task/"*/children 2>/dev/null; }
start() { # one of `layouts`; sets job, ranks
    read -r ranks settings <<<"$1"
    local set=() setting
    for setting in $settings; do set+=(--set "$setting"); done
    setsid "$source/tests/support/mpirun.sh" "$ranks" "$ferry" generate "${common[@]}" "${set[@]}" \
        --input "$input" --output "$work/out" >"$work/log" 2>&1 &
    job=$!
}
# The processes that mpirun started ("keepers"), or the ranks under them, once they are there.
processes() {
    local mpirun keepers keeper
    mpirun=$(children "$job")
    [ -n "$mpirun" ] || return
    keepers=$(children "${mpirun%% *}")
    [ "$1" = keepers ] && { echo "$keepers"; return; }
    for keeper in $keepers; do
        children "$keeper"
    done
}
await_ranks() { until [ -n "$(processes ranks)" ] || ! kill -0 "$job" 2>/dev/null; do sleep 0.02; done; }
random_layout() { layout=${layouts[RANDOM % ${#layouts[@]}]}; }
finished() { cat "$work/out"/part-*.jsonl 2>/dev/null | sed -n 's/.*"index": *\([0-9]*\).*"sample".*}}$/\1/p' | sort -n | uniq; }
finish_run() { # undisturbed, to the end
    random_layout
    start "$layout"
    wait "$job"
    local code=$?
    job=
    [ $code -eq 0 ] || fail "resumed on [$layout]: exit code $code"
    cmp "$work/one/completions.jsonl" "$work/out/completions.jsonl" || fail "other results than undisturbed"
    rm -rf "$work/out"
}

# How long a run takes once there are ranks: most victims shall be hit before its end.
start "${layouts[1]}"
await_ranks
begin=$(now_ms)
wait "$job" || fail "undisturbed on [${layouts[1]}]: exit code $?"
run_ms=$(($(now_ms) - begin))
job=
cmp "$work/one/completions.jsonl" "$work/out/completions.jsonl" || fail "other results than on one rank"
grep -q '"done": 18,' "$work/out/status.json" || fail "the status of a finished run lacks requests"
rm -rf "$work/out"

killed=0 resumed_runs=0 ended_before=0 slowest_ms=0
while [ "$killed" -lt "$kills" ]; do
    random_layout
    [ "$layout" = 1 ] && continue
    start "$layout"
    # As soon as there are ranks: while MPI starts, while they load, while they work.
    await_ranks
    delay_ms=$((RANDOM % run_ms))
    sleep "$((delay_ms / 1000)).$(printf %03d $((delay_ms % 1000)))"
    read -r -a victims <<<"$(processes ranks | tr '\n' ' ')"
    before=$(finished)
    if [ "${#victims[@]}" -eq 0 ]; then # done already, or not started yet
        wait "$job" && ended_before=$((ended_before + 1)) || fail "ended by itself on [$layout]"
    else
        kill -KILL "${victims[RANDOM % ${#victims[@]}]}" 2>/dev/null
        begin=$(now_ms)
        wait "$job"
        code=$?
        took_ms=$(($(now_ms) - begin))
        [ "$took_ms" -gt "$slowest_ms" ] && slowest_ms=$took_ms
        [ "$took_ms" -le 10000 ] || fail "the job on [$layout] ended $took_ms ms after the kill"
        # Killed on its last steps: all was done.
        [ "$code" -eq 5 ] || [ -f "$work/out/completions.jsonl" ] || fail "exit code $code on [$layout]"
        killed=$((killed + 1))
    fi
    job=
    if [ -f "$work/out/completions.jsonl" ]; then
        cmp "$work/one/completions.jsonl" "$work/out/completions.jsonl" || fail "other results than undisturbed"
        rm -rf "$work/out"
        continue
    fi
    lost=$(comm -23 <(sort <<<"$before") <(finished | sort))
    [ -z "$lost" ] || fail "requests $lost were finished before the kill and are gone"
    # Mostly the next victim resumes, so that a folder sees several kills.
    if [ $((RANDOM % 3)) -eq 0 ]; then
        finish_run
        resumed_runs=$((resumed_runs + 1))
    fi
done
[ -d "$work/out" ] && finish_run
echo "$killed kills, $resumed_runs runs resumed to their end, $ended_before had ended before; slowest end $slowest_ms ms; an undisturbed run takes $run_ms ms"

one_rank 90 # more than is done before a signal has come
stopped=0
for signal in TERM USR1; do
    for layout in "${layouts[1]}" "${layouts[2]}"; do
        start "$layout"
        until [ -s "$work/out/part-00000.jsonl" ] || ! kill -0 "$job" 2>/dev/null; do sleep 0.02; done
        # As a batch system does: to every rank.
        # shellcheck disable=SC2046
        kill -$signal $(processes keepers) 2>/dev/null
        wait "$job"
        code=$?
        job=
        if [ "$code" -eq 75 ]; then
            stopped=$((stopped + 1))
            [ "$(grep -c 'run again to go on' "$work/log")" -eq 1 ] || fail "SIG$signal: not told once"
        else
            [ "$code" -eq 0 ] || fail "SIG$signal on [$layout]: exit code $code"
        fi
        finish_run
    done
done
echo "$stopped of 4 runs were stopped by a signal"
[ "$stopped" -ge 2 ] || fail "too few were stopped: the runs are too short for this test"
