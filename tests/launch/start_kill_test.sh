#!/usr/bin/env bash
# start_kill_test.sh FERRY SOURCE_DIR KILLED_WITHIN: a rank is killed in the phases of a job that kill_test.sh meets by chance
# only: before and inside MPI_Init, while it connects to the launcher there, inside the making of communicators, while
# weights are loaded, in MPI_Finalize. The job must end within 10 s with exit code 5, and the rank be named.
set -uo pipefail
ferry=$1
source=$2
library=$3
source "$source/tests/support/job.sh"
"$ferry" convert "$source/configs/demo" "$work/demo" --expert-shards 2 2>/dev/null || exit 1
requests 4 >"$work/input.jsonl"

killed() { # RANK,before|within,FUNCTION
    local begin took_ms code rank=${1%%,*}
    rm -rf "$work/out"
    begin=$(now_ms)
    "$source/tests/support/mpirun.sh" 3 -x "LD_PRELOAD=$library" -x "FERRY_TEST_KILL=$1" \
        "$ferry" generate --model "$work/demo" --input "$work/input.jsonl" --output "$work/out" \
        --set engine.threads=1 --set log.progress=off >"$work/log" 2>&1
    code=$?
    took_ms=$(($(now_ms) - begin))
    echo "$1: exit code $code, $took_ms ms after the start"
    [ "$code" -eq 5 ] || fail "$1: exit code $code"
    [ "$took_ms" -le 10000 ] || fail "$1: the job ended $took_ms ms after its start"
    grep -q "^ferry: rank $rank on .* was ended by signal 9" "$work/log" || fail "$1: nobody names rank $rank"
}
killed 1,before,MPI_Init_thread
# Without the keeper's care mpirun of Open MPI 4.1 blocks here, or crashes, five times in six.
killed 1,before,recv
killed 0,before,recv
killed 2,within,MPI_Init_thread
killed 1,before,MPI_Comm_split_type
killed 0,within,MPI_Comm_split_type
killed 1,before,MPI_Win_allocate_shared
killed 1,within,MPI_Finalize
[ "$(grep -c . "$work/out/completions.jsonl")" -eq 4 ] || fail "killed within MPI_Finalize: results are gone"
