# job.sh: what the batch files share. They set batch_file and slurm_dir, source this, check, and call run_ranks.
# shellcheck shell=bash disable=SC2034,SC2154

refuse() { # one line, before a rank is started
    echo "$(basename "$batch_file"): $*" >&2
    exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || refuse "is a batch job; submit it: sbatch $batch_file ..."
site=${FERRY_SITE:-$slurm_dir/site.env}
[ -r "$site" ] || refuse "$site (FERRY_SITE) cannot be read"
# shellcheck disable=SC1090
source "$site"
[[ ${FERRY_RESTARTS:-3} =~ ^[0-9]+$ ]] || refuse "FERRY_RESTARTS must be a whole number; is $FERRY_RESTARTS"
# srun of 22.05 and newer no longer takes --cpus-per-task from the job.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

find_ferry() {
    ferry=${FERRY:-}
    if [ -n "$ferry" ]; then
        command -v "$ferry" >/dev/null || refuse "FERRY=$ferry is no executable on $(hostname)"
        return
    fi
    for ferry in "$slurm_dir/../build/release/launch/ferry" "$slurm_dir/../../../bin/ferry"; do
        [ ! -x "$ferry" ] || return 0
    done
    ferry=$(command -v ferry) || refuse "no ferry found: build it, or set FERRY in $site"
}

check_launcher() {
    read -r -a launch <<<"$FERRY_LAUNCH"
    command -v "${launch[0]}" >/dev/null || refuse "FERRY_LAUNCH: there is no ${launch[0]} on $(hostname)"
    case " $FERRY_LAUNCH " in *" --mpi=pmix "*)
        [[ $(srun --mpi=list 2>&1) == *pmix* ]] ||
            refuse "this Slurm has no PMIx (srun --mpi=list); set FERRY_LAUNCH=mpirun in $site" ;;
    esac
}

# RUN.yaml [--set SECTION.KEY=VALUE]...: checks all of it on this node. Sets output_dir, by which `ferry top JOB` finds it.
check_run() {
    [ $# -gt 0 ] || refuse "which run? sbatch $(basename "$batch_file") RUN.yaml [--set SECTION.KEY=VALUE]..."
    [ -r "$1" ] || refuse "$1 cannot be read from $(hostname):$PWD"
    config=$("$ferry" config "$@") || exit 2 # it has said why
    value() { sed -n "/^$1:/,/^[^ ]/s/^  $2: \"\{0,1\}\([^\"]*\)\"\{0,1\}\$/\1/p" <<<"$config"; }
    local path
    for path in "$(value model path)" "$(value input file)"; do
        [ -z "$path" ] || [ -e "$path" ] || refuse "$path does not exist on $(hostname); is the file system shared?"
    done
    output_dir=$(value output dir)
    output_dir=${output_dir:-ferry-$SLURM_JOB_ID}
    scontrol update "JobId=$SLURM_JOB_ID" "Comment=ferry:$output_dir" || true
}

requeue() { # WHY
    echo "job $SLURM_JOB_ID goes back to the queue: $1"
    scontrol requeue "$SLURM_JOB_ID" && sleep 300 # Slurm ends this shell
    echo "job $SLURM_JOB_ID cannot be requeued; submit it again to go on"
}

# srun of Slurm 22.05 now and then goes on waiting after its last task has ended (seen with heterogeneous jobs): without
# this the job would hold its nodes until the time limit. Ended so it counts as a lost rank: a run that was finished says
# so when it is started again.
end_launcher_without_ranks() {
    local interval=2 gone=0 steps
    while sleep $interval && kill -0 "$step" 2>/dev/null; do
        steps=$(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i 2>/dev/null) || continue
        if [[ $steps =~ \.[0-9]+($|[[:space:]]) ]]; then
            interval=20 gone=0
        elif [ $interval = 20 ] && [ $((++gone)) = 2 ]; then
            echo "all ranks have ended, but ${launch[0]} still waits: it is ended"
            kill -KILL "$step"
        fi
    done
}

# COMMAND...: in the background, so that the signal that Slurm sends before the time limit reaches this shell. The ranks
# then finish their step, keep their results and exit 75; the job is requeued and goes on where it was.
# scancel does not come here as USR1: a job that is cancelled stays so.
run_ranks() {
    local signalled='' watcher='' code num_lost lost
    lost=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *StdOut=/{s///p;q}')
    lost=$(dirname "$lost")/.ferry-lost-$SLURM_JOB_ID
    echo "job $SLURM_JOB_ID, run $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-?}"
    trap 'signalled=yes; echo "time is short: stopping in good order"; kill -USR1 $step 2>/dev/null' USR1
    "$@" &
    step=$!
    if [ "${launch[0]}" = srun ]; then
        end_launcher_without_ranks &
        watcher=$!
        disown $watcher # or its end would be told
    fi
    while :; do
        wait $step
        code=$?
        kill -0 $step 2>/dev/null || break # else a signal ended the wait
    done
    [ -z "$watcher" ] || kill $watcher
    if [ $code -ne 0 ] && [ -n "$signalled" ]; then
        requeue "the time limit comes"
        code=75
    elif [ $code -eq 5 ] || [ $code -ge 128 ]; then
        num_lost=$(($(cat "$lost" 2>/dev/null || echo 0) + 1))
        # Where nobody can count, every restart counts: no job goes back for ever.
        echo $num_lost >"$lost" || num_lost=$((${SLURM_RESTART_COUNT:-0} + 1))
        [ $num_lost -gt "${FERRY_RESTARTS:-3}" ] || requeue "a rank was lost (exit code $code), restart $num_lost"
    fi
    rm -f "$lost"
    exit $code
}
