#!/usr/bin/env bash
# bench_jobs_test.sh FERRY SOURCE_DIR: ferry bench throughput | scaling | load and ferry top, from the command line, on
# one and on several ranks.
set -uo pipefail
ferry=$1
source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run=("$source/tests/support/mpirun.sh")
"$ferry" convert "$source/configs/demo" "$work/demo" 2>/dev/null || exit 1
small=(--requests 4 --input 9 --output 4 --repetitions 1 --set engine.threads=1 --set engine.cache_gib=0.05
    --set log.level=warn)

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
expect 0 "load/read %" "${run[@]}" 2 "$ferry" bench load --model "$work/demo" --layout 1:1,colocated:1 \
    --repetitions 1 --set engine.threads=1 --set engine.cache_gib=0.05 --json "$work/l.json"
holds "$work/l.json" '"state": "cold"'

expect 0 "6 requests in" "${run[@]}" 2 "$ferry" generate --model "$work/demo" --prompt Emma --set sampling.n=6 \
    --set sampling.temperature=1 --set sampling.max_tokens=5 --set engine.threads=1 --output "$work/out"
expect 0 "6 of 6 done, 0 running, 0 waiting" "$ferry" top --once "$work/out"
# A Slurm job by its number: the folder in its comment, or else its working directory.
mkdir "$work/bin"
printf '#!/bin/sh\n[ "$4" = 7 ] && echo "JobId=7 Comment=ferry:out WorkDir=%s Power="\n[ "$4" = 8 ] && echo "JobId=8 WorkDir=%s/out"\nexit 0\n' \
    "$work" "$work" >"$work/bin/scontrol"
chmod +x "$work/bin/scontrol"
for job in 7 8; do
    expect 0 "6 of 6 done" env PATH="$work/bin:$PATH" "$ferry" top --once $job
done
expect 2 "does not know this job here; give the job's output folder" env PATH="$work/bin:$PATH" "$ferry" top 9

expect 2 "--rate: needs --arrivals" "$ferry" bench throughput --model "$work/demo" --rate 3
expect 2 "--layout 2-2: write attention:expert ranks" "$ferry" bench throughput --model "$work/demo" --layout 2-2
expect 2 "a request cannot run: " "$ferry" bench throughput --model "$work/demo" --input 100 --set engine.max_context=90
expect 2 "needs a checkpoint" "$ferry" bench load --shape "$source/configs/models/bench-8.yaml"
expect 4 "neither a folder nor a Slurm job" "$ferry" top "$work/nothing"
expect 4 "no status.json here" "$ferry" top "$work/demo"
echo "bench_jobs_test: $failed failed"
[ "$failed" -eq 0 ]
