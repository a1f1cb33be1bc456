#!/usr/bin/env bash
# slurm_test.sh FERRY SOURCE_DIR: every batch file of slurm/ on a real Slurm of four hosts (slurm.sh). Results are those
# of one rank, byte for byte: of a plain job, a heterogeneous one, and of jobs that were cancelled, ran into their time
# limit, or lost a node, and went on. Exit code 77 where Slurm cannot be started.
set -uo pipefail
export FERRY=$1
source=$2
slurm=$source/tests/slurm/slurm.sh
work=$(mktemp -d)
chmod 755 "$work"
export SLURM_TEST_DIR=$work/slurm CLUSTER_NAME=fs$(($$ % 10000))h CLUSTER_NET=10.79.$(($$ % 250))
if ! why=$("$slurm" check); then
    echo "SKIPPED: $why"
    rm -rf "$work"
    exit 77
fi
trap '"$slurm" down >/dev/null 2>&1; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
cd "$work" || exit 1

# Jobs inherit it: root, more ranks than cores, and UCX over TCP between the hosts, for MPI as well. (With ob1, one start
# in some hundreds of Open MPI 4.1 under srun crashes in MPI_Init: its TCP gets a message that ob1 does not await yet.)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_oob_tcp_if_include=eth0 OMPI_MCA_pml=ucx OMPI_MCA_osc=sm,ucx
export OMPI_MCA_pml_ucx_tls=any OMPI_MCA_pml_ucx_devices=any UCX_TLS=self,sm,tcp UCX_NET_DEVICES=eth0
unset "${!SLURM_JOB@}" "${!SBATCH_@}"
fail() {
    echo "FAILED: $*"
    [ -z "${job:-}" ] || "$slurm" scontrol show job "$job" | grep -E 'JobState|ExitCode|Restarts|NodeList='
    # The job's own output last: what prints this may keep the end only.
    local file own
    own=$(basename "$([ -z "${job:-}" ] || field StdOut)")
    for file in "$work"/*.out; do [ "$(basename "$file")" = "$own" ] || { echo "==> $file"; tail -n 12 "$file"; }; done
    tail -n 60 "$work"/slurm/log/slurmctld.log
    [ ! -f "$work/$own" ] || { echo "==> $own"; tail -n 80 "$work/$own"; }
    echo "FAILED: $*"
    exit 1
}
submit() { job=$("$slurm" sbatch --parsable "$@") || fail "sbatch $*"; }
field() { "$slurm" scontrol show job "$job" -o | head -1 | sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }
wait_for() { # SECONDS CONDITION...
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $until ] || fail "waited too long for: $*"
        sleep 0.1
    done
}
in_state() { [[ $(field JobState) =~ ^($1)$ ]]; }
ended() { # STATE EXIT_CODE
    wait_for 200 in_state "COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL"
    [ "$(field JobState) $(field ExitCode)" = "$1 $2:0" ] || fail "job $job: $(field JobState) $(field ExitCode), not $1 $2"
}
says() { grep -qF -- "$2" "$work/$1" || fail "$1 does not say: $2"; }
ok() { echo "ok: $* ($SECONDS s)"; }
same() { cmp "${2:-one}/completions.jsonl" "$1/completions.jsonl" || fail "$1: other bytes than one rank"; }

"$FERRY" convert "$source/configs/demo" demo --expert-shards 2 2>/dev/null >&2 || exit 1
requests() { # HOW_MANY TOKENS
    for i in $(seq 1 "$1"); do
        echo "{\"id\":\"r$i\",\"prompt\":\"Emma was number $i, and\",\"max_tokens\":$(($2 + i * 7 % 31)),\"ignore_eos\":true,\"temperature\":0.8,\"seed\":$i}"
    done
}
requests 10 10 >input.jsonl
requests 40 70 >long.jsonl # some seconds, so that there is something to interrupt
cat >run.yaml <<YAML
model: {path: demo}
input: {file: input.jsonl}
output: {dir: out, timings: false, sync_interval_s: 0}
engine: {threads: 1, max_batch: 2}
log: {progress: 'off'}
YAML
long=(run.yaml --set input.file=long.jsonl)
"$FERRY" generate run.yaml --output one 2>log && "$FERRY" generate "${long[@]}" --output one-long 2>log ||
    { cat log; exit 1; }
"$slurm" up 4 || exit 1
ok "Slurm is up"

hosts=("$CLUSTER_NAME"{0..3})
# What is wrong is said at once.
submit --output=no-run.out "$source/slurm/generate.sbatch"; no_run=$job
submit --output=no-file.out "$source/slurm/generate.sbatch" missing.yaml; no_file=$job
submit --output=bad-key.out "$source/slurm/generate.sbatch" run.yaml --set engine.thread=2; bad_key=$job
submit --output=no-convert.out "$source/slurm/convert.sbatch" nowhere out2; no_convert=$job
FERRY=/nowhere/ferry submit --output=no-ferry.out "$source/slurm/generate.sbatch" run.yaml; no_ferry=$job
FERRY_RESTARTS=often submit --output=no-number.out "$source/slurm/generate.sbatch" run.yaml; no_number=$job
submit --output=order.out -w "${hosts[2]}" : -w "${hosts[0]},${hosts[3]}" "$source/slurm/generate-het.sbatch" run.yaml; order=$job
for job in $order $no_run $no_file $bad_key $no_convert $no_ferry $no_number; do ended FAILED 2; done
says no-run.out "generate.sbatch: which run? sbatch generate.sbatch RUN.yaml"
says no-file.out "generate.sbatch: missing.yaml cannot be read from ${CLUSTER_NAME}"
says bad-key.out "did you mean engine.threads?"
says no-convert.out "convert.sbatch: nowhere/config.json cannot be read"
says no-ferry.out "FERRY=/nowhere/ferry is no executable"
says no-number.out "FERRY_RESTARTS must be a whole number; is often"
says order.out "the nodes of the components, ${hosts[2]},${CLUSTER_NAME}[0,3], are not in order"
ok "refusals"

# A job that loses a rank each time fails in the end, also where it can write no count of them.
cat >dying <<SH
#!/bin/sh
[ "\$1" != generate ] || { mkdir -p .ferry-lost-\$SLURM_JOB_ID; exit 5; }
exec $FERRY "\$@"
SH
chmod +x dying
FERRY=$work/dying FERRY_RESTARTS=1 submit --output=dying.out "$source/slurm/generate.sbatch" run.yaml --set output.dir=dying
dying=$job

# Side by side: a plain job, a heterogeneous one, a conversion, tasks that no MPI joins.
submit "$source/slurm/generate.sbatch" run.yaml --set output.dir=plain; plain=$job
submit -w "${hosts[0]}" --ntasks-per-node=2 : -w "${hosts[1]},${hosts[2]}" --ntasks-per-node=1 "$source/slurm/generate-het.sbatch" run.yaml \
    --set output.dir=het --set layout.tp_size=2; het=$job
submit "$source/slurm/convert.sbatch" "$source/configs/demo" demo2 --expert-shards 2; convert=$job
submit -N2 --ntasks-per-node=2 --output=alone.out --wrap "srun --mpi=none $FERRY generate run.yaml --output alone
    srun --mpi=none $FERRY doctor --size 4"; alone=$job
submit -N3 --ntasks-per-node=1 --output=doctor.out --wrap "srun --mpi=pmix $FERRY doctor --size 4"; doctor=$job
FERRY_LAUNCH="mpirun --bind-to none" submit "$source/slurm/generate.sbatch" run.yaml --set output.dir=mpirun; mpirun=$job
# Paths with blanks: of the batch files, of what they are given, of what they write.
cp -r "$source/slurm" "my batch files"
cp input.jsonl "my input.jsonl"
submit "my batch files/generate.sbatch" run.yaml --set input.file="my input.jsonl" --set output.dir="my results"; blanks=$job
job=$plain; ended COMPLETED 0
same plain
[ "$(field Comment)" = ferry:plain ] || fail "no comment by which ferry top finds the folder: $(field Comment)"
[ "$(grep -c "^rank  node" "ferry-$plain.out")" = 1 ] || fail "the role map is not printed once"
grep -qE "^1 +${CLUSTER_NAME}[0-3] +1 \(1.0\) +1 .* 0-" "ferry-$plain.out" || fail "no role, host and cores of rank 1"
job=$blanks; ended COMPLETED 0
same "my results"
"$slurm" "$FERRY" top --once "$job" | grep -q "10 of 10 done" || fail "ferry top does not find \"my results\""
job=$het; ended COMPLETED 0
same het
says "ferry-het-$het.out" "disaggregated layout: 2 attention, 2 expert ranks of 4, tensor-parallel groups of 2"
job=$convert; ended COMPLETED 0
diff -r demo demo2 || fail "converted by a job: other bytes"
job=$alone; ended FAILED 2
says alone.out "the launcher started 4 tasks, but each of them is an MPI world of its own"
[ "$(grep -c "the launcher started" alone.out)" = 1 ] || fail "tasks without PMIx: told more than once"
says alone.out "srun --mpi=none, 4 tasks, each an MPI world of its own"
job=$doctor; ended COMPLETED 0
says doctor.out "3 ranks on 3 hosts"
grep -qE "^shared +ok +all 3 " doctor.out && grep -q "^0 failed" doctor.out || fail "doctor: $(cat doctor.out)"
job=$mpirun; ended COMPLETED 0
same mpirun
job=$dying; ended FAILED 5
says dying.out "a rank was lost (exit code 5), restart 1"
ok "plain, heterogeneous, convert, doctor, mpirun, tasks without PMIx"

submit "$source/slurm/generate.sbatch" run.yaml --set output.dir=plain; ended COMPLETED 0
says "ferry-$job.out" "plain/completions.jsonl is finished already, nothing to do"
submit "$source/slurm/convert.sbatch" "$source/configs/demo" demo2; ended COMPLETED 0
says "ferry-convert-$job.out" "demo2/model.h5 is there already, nothing to do"
ok "submitted again: nothing to do"

sweep() {
    submit --ntasks-per-node=2 --array=0-2 "$source/slurm/bench-sweep.sbatch" --layouts colocated,1:3 --batches 1,8 \
        --out sweep -- exchange --layout '{layout}' --tokens '{batch}' --dim 256 --experts 8 --topk 2 --repetitions 3
    wait_for 60 eval '[ -z "$("$slurm" squeue -h -j "$job" 2>/dev/null)" ]'
}
sweep
[ "$(sort -u sweep/rows.jsonl | wc -l)" = 4 ] && [ "$(ls sweep/*.json | wc -l)" = 4 ] || fail "sweep: not 4 rows and files"
[ "$(grep -c '"wrong": 0' sweep/rows.jsonl)" = 4 ] || fail "sweep: rows without figures"
cp sweep/rows.jsonl rows
sweep
says "ferry-sweep-${job}_0.out" "sweep/exchange-colocated-b1.json is there already"
cmp rows sweep/rows.jsonl || fail "sweep: rows changed when run again"
ok "array"

started() { cat "$1"/part-*.jsonl 2>/dev/null | grep -q . || ! in_state "PENDING|RUNNING|CONFIGURING"; }
interrupted() { # DIR: and not yet finished
    [ -s "$1/part-00000.jsonl" ] && [ ! -e "$1/completions.jsonl" ] || fail "$1: nothing to interrupt"
}
process_of_rank() { # RANK of the job: below its keeper
    local process
    for process in $(pgrep -x ferry); do
        [ "$(tr '\0' '\n' <"/proc/$process/environ" | grep -cxE "SLURM_JOB_ID=$job|SLURM_PROCID=$1")" = 2 ] || continue
        [ -n "$(cat "/proc/$process"/task/*/children)" ] || echo "$process"
    done 2>/dev/null
}
# Cancelled: stays so, keeps its results.
submit "$source/slurm/generate.sbatch" "${long[@]}" --set output.dir=cancelled
wait_for 150 started cancelled
"$slurm" scancel "$job"
wait_for 30 in_state CANCELLED
interrupted cancelled
cancelled=$job
# What Slurm sends before the time limit (--signal=B:USR1@120), to a heterogeneous job.
submit -w "${hosts[0]}" : -w "${hosts[1]},${hosts[3]}" "$source/slurm/generate-het.sbatch" "${long[@]}" --set output.dir=limited; limited=$job
wait_for 150 started limited
"$slurm" scancel --batch --signal=USR1 "$job"
wait_for 30 in_state PENDING
interrupted limited
says "ferry-het-$job.out" "they are kept, run again to go on"
ok "cancelled; requeued after USR1"

# A rank is killed: srun ends at once with its exit code, and the job goes back to the queue by itself.
submit --nodes=3 "$source/slurm/generate.sbatch" "${long[@]}" --set output.dir=killed
wait_for 150 started killed
kill -KILL "$(process_of_rank 1)" || fail "no rank 1 to kill"
wait_for 60 eval '[ "$(field Restarts)" = 1 ]'
interrupted killed
grep -qE "rank 1 on ${CLUSTER_NAME}[0-3] \(process [0-9]+\) was ended by signal 9" "ferry-$job.out" || fail "the killed rank is not named"
says "ferry-$job.out" "goes back to the queue: a rank was lost (exit code 5), restart 1"
ended COMPLETED 0
same killed one-long
[ "$(field Restarts)" = 1 ] || fail "not one restart: $(field Restarts)"
says "ferry-$job.out" "requests are done already"
ok "resumed after a rank was killed"

# A host loses power.
job=$limited
submit --nodes=3 "$source/slurm/generate.sbatch" "${long[@]}" --set output.dir=lost; lost=$job
wait_for 150 started lost
batch_host=$(field BatchHost)
for host in $("$slurm" scontrol show hostnames "$(field NodeList)"); do [ "$host" = "$batch_host" ] || victim=$host; done
"$slurm" power-off "$victim"
ok "$victim lost power"
# Not there: until Slurm misses it, it would be given work.
submit --exclude="$victim" "$source/slurm/generate.sbatch" "${long[@]}" --set output.dir=cancelled; ended COMPLETED 0
same cancelled one-long
says "ferry-$job.out" "requests are done already"
[ "$(JOB=$cancelled; job=$JOB; field JobState)" = CANCELLED ] || fail "job $cancelled did not stay cancelled"
job=$limited; ended COMPLETED 0
same limited one-long
[ "$(field Restarts)" -ge 1 ] || fail "no restart" # one more where srun waited on after its last task (slurm/job.sh)
says "ferry-het-$job.out" "requests are done already"
ok "both resumed"
# Ferry notices first, ends with exit code 5, and the job requeues itself; or Slurm does (SlurmdTimeout).
job=$lost; ended COMPLETED 0
same lost one-long
[ "$(field Restarts)" = 1 ] || fail "not one restart: $(field Restarts)"
says "ferry-$job.out" "requests are done already"
[[ " $("$slurm" scontrol show hostnames "$(field NodeList)" | tr '\n' ' ') " != *" $victim "* ]] || fail "ran on $victim again"
"$slurm" start "$victim"
wait_for 20 eval '[ "$("$slurm" sinfo -h -n "$victim" -o %T)" = idle ]'
ok "resumed after the loss of a host, ${SECONDS} s in all"
