#!/usr/bin/env bash
# bench_jobs_test.sh FERRY SOURCE_DIR TRACE_CHECK: ferry bench throughput | scaling | load and ferry top, from the command line, on
# one and on several ranks.
set -uo pipefail
ferry=$1
source=$2
trace_check=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run=("$source/tests/support/mpirun.sh")
"$ferry" convert "$source/configs/demo" "$work/demo" 2>/dev/null || exit 1
short=(--requests 4 --input 9 --output 4 --set engine.threads=1 --set engine.cache_gib=0.05
    --set log.level=warn)
small=("${short[@]}" --repetitions 1)

source "$source/tests/support/expect.sh"
holds() { # FILE TEXT
    grep -qF -- "$2" "$1" || { echo "FAILED: $1 lacks \"$2\""; failed=$((failed + 1)); }
}

expect 0 "phases add up to the wall time" "$ferry" bench throughput --model "$work/demo" "${small[@]}" \
    --batch 1,4 --arrivals poisson --rate 200 --slo-ttft-ms 10000 --json "$work/t.json" --csv "$work/t.csv"
holds "$work/t.json" '"hidden_share"'
holds "$work/t.json" '"share": 1.0'
holds "$work/t.csv" "output_tokens_per_s"
expect 0 "2:2 batch 32: skipped: needs 4 ranks, this job has 3" "${run[@]}" 3 "$ferry" bench throughput \
    --model "$work/demo" "${small[@]}" --layout 1:2,2:2 --status-dir "$work"
expect 0 "bench 1:2 batch 32: finished" "$ferry" top "$work"
expect 0 "efficiency %" "${run[@]}" 2 "$ferry" bench scaling --model "$work/demo" "${small[@]}" --json "$work/s.json"
holds "$work/s.json" '"kind": "weak"'
# Fewer requests than ranks: weak scaling has one at least.
expect 0 "efficiency %" "${run[@]}" 2 "$ferry" bench scaling --model "$work/demo" "${small[@]:2}" --requests 1 --kind weak \
    --layout colocated:2,colocated:1
expect 0 "efficiency %" "$ferry" bench scaling --model "$work/demo" "${small[@]}" --layout colocated:1,1:1 --kind strong \
    --launcher "${run[*]} {ranks}" --set log.trace="$work/s.trace.json" --json "$work/s.json"
holds "$work/s.json" '"launcher": '
holds "$work/s.json" '"layout": "1:1"'
holds "$work/s.trace-strong-1-1.json" '"rows"'
expect 5 "ended with exit code 1 and left no results" "$ferry" bench scaling --model "$work/demo" "${small[@]}" --layout colocated:1 --kind strong \
    --launcher "env false"
expect 3 "the first job ended with exit code 3" "$ferry" bench scaling --model "$work/nothing" --layout 1:1 --kind strong \
    --launcher "${run[*]} {ranks}"
expect 2 "with --launcher a layout names its ranks" "$ferry" bench scaling --model "$work/demo" --layout colocated --launcher auto
expect 2 "needs --layout" "$ferry" bench scaling --model "$work/demo" --launcher auto
expect 2 "no-such-launcher: cannot be started" "$ferry" bench scaling --model "$work/demo" "${small[@]}" --layout colocated:1 \
    --launcher no-such-launcher
expect 2 "run ferry bench scaling once" "${run[@]}" 2 "$ferry" bench scaling --model "$work/demo" --layout 1:1 --launcher auto

# A trace of each case, of a benchmark of layers and of exchanges.
expect 0 "validity" "$ferry" bench throughput --model "$work/demo" "${small[@]}" --batch 1,2 --set log.trace="$work/t.json"
expect 0 "step" "$ferry" bench layer --shape "$source/tests/launch/tiny_model.yaml" --decode 1 --context 8 --prefill 16 \
    --warmup 1 --repetitions 2 --set log.trace="$work/layer.json"
expect 0 "1:1" "${run[@]}" 2 "$ferry" bench exchange --tokens 1,8 --dim 64 --experts 8 --topk 2 --repetitions 3 \
    --trace "$work/e.json"
for trace in t-colocated-batch-1 t-colocated-batch-2 layer e-auto-1-1-uniform-bf16-auto-x-64-8; do
    expect 0 " 0 problems" "$trace_check" "$work/$trace.json"
done
holds "$work/e-auto-1-1-uniform-bf16-auto-x-64-8.json" '"rows"'
# Stopped in the sweep: what is done is reported.
expect 75 "what was finished before is reported" timeout -s TERM --preserve-status 3 "$ferry" bench exchange --layout colocated \
    --tokens 1,4096,4096,4096,4096,4096,4096,4096,4096 --experts 8 --dim 1024 --repetitions 100 --json "$work/stopped.json"
holds "$work/stopped.json" '"tokens": 1'
expect 2 "runs on one rank" "${run[@]}" 2 "$ferry" bench layer --shape "$source/tests/launch/tiny_model.yaml" --decode 1 \
    --context 8 --prefill 0 --set log.trace="$work/layer.json"

expect 0 "load/read %" "${run[@]}" 2 "$ferry" bench load --model "$work/demo" --layout 1:1,colocated:1 \
    --repetitions 1 --set engine.threads=1 --set engine.cache_gib=0.05 --json "$work/l.json"
holds "$work/l.json" '"state": "cold"'

expect 0 "6 completions in" "${run[@]}" 2 "$ferry" generate --model "$work/demo" --prompt Emma --set sampling.n=6 \
    --set sampling.temperature=1 --set sampling.max_tokens=5 --set engine.threads=1 --output "$work/out"
expect 0 "6 of 6 done, 0 running, 0 waiting" "$ferry" top --once "$work/out"
# A Slurm job by its number: the folder in its comment, or else its working directory. Paths may hold blanks.
mkdir "$work/bin"
mkdir "$work/a b"
cp -r "$work/out" "$work/a b/of c"
cat >"$work/bin/scontrol" <<SH
#!/bin/sh
case \$3 in
    7) printf 'JobId=7 JobName=x\n   WorkDir=%s\n   Comment=ferry:out \n   Power=\n' "$work" ;;
    8) printf 'JobId=8 JobName=x\n   WorkDir=%s\n' "$work/out" ;;
    10) printf 'JobId=10 JobName=x\n   Command=x Comment=y\n   WorkDir=%s\n   Comment=ferry:of c \n' "$work/a b" ;;
esac
SH
chmod +x "$work/bin/scontrol"
for job in 7 8 10; do
    expect 0 "6 of 6 done" env PATH="$work/bin:$PATH" "$ferry" top --once $job
done
expect 2 "does not know this job here; give the job's output folder" env PATH="$work/bin:$PATH" "$ferry" top 9

# Pages of a file system in memory cannot be dropped: no cold start.
if memory=$(mktemp -d /dev/shm/ferry-test-XXXXXX 2>/dev/null); then
    cp -rL "$work/demo" "$memory" &&
        expect 0 "cached" "$ferry" bench load --model "$memory/demo" --files cold --repetitions 1 --set engine.cache_gib=0.05 \
            --json "$work/l.json" && holds "$work/l.json" '"state": "cached"'
    rm -rf "$memory"
fi

# Stopped in the second case: the first is reported, and nothing hangs.
stop_in_second() { # SIGNAL CODE COMMAND...
    local signal=$1 code=$2 job got=0
    shift 2
    rm -rf "$work/status" "$work/stop.json"
    mkdir "$work/status"
    env --default-signal=INT "$@" bench throughput --model "$work/demo" "${short[@]}" --batch 1,4 --repetitions 40 \
        --status-dir "$work/status" --json "$work/stop.json" >"$work/log" 2>&1 &
    job=$!
    until grep -qs "batch 4" "$work/status/status.json" || ! kill -0 $job 2>/dev/null; do sleep 0.02; done
    kill -"$signal" $job
    wait $job || got=$?
    [ $got -eq "$code" ] || { echo "FAILED: $signal to $*: exit code $got"; tail -5 "$work/log"; failed=$((failed + 1)); }
    holds "$work/stop.json" '"settings": "batch 1"'
    holds "$work/stop.json" '"all_finished": true'
}
stop_in_second INT 75 "$ferry"
# mpirun hands SIGUSR1 to the ranks and ends as they do; after Ctrl-C it ends with a code of its own.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
stop_in_second USR1 75 mpirun -n 2 --oversubscribe --bind-to none "$ferry"
stop_in_second INT 1 mpirun -n 2 --oversubscribe --bind-to none "$ferry"

expect 2 "--rate: needs --arrivals" "$ferry" bench throughput --model "$work/demo" --rate 3
expect 2 "--layout 2-2: write attention:expert ranks" "$ferry" bench throughput --model "$work/demo" --layout 2-2
expect 2 "a request cannot run: " "$ferry" bench throughput --model "$work/demo" --input 100 --set engine.max_context=90
expect 2 "needs a checkpoint" "$ferry" bench load --set model.dummy="$source/configs/models/bench-8.yaml"
expect 4 "neither a folder nor a Slurm job" "$ferry" top "$work/nothing"
expect 4 "no status.json here" "$ferry" top "$work/demo"
echo "bench_jobs_test: $failed failed"
[ "$failed" -eq 0 ]
