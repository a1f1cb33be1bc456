#!/usr/bin/env bash
# startup_test.sh FERRY SOURCE_DIR: what a user is told when a job of several ranks cannot start as it was meant, with
# exit code 2 (DESIGN 4.7).
set -uo pipefail
ferry=$1
source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$ferry" convert "$source/configs/demo" "$work/demo" 2>/dev/null || exit 1
d=layout.mode=disaggregated

source "$source/tests/support/expect.sh"
run=("$source/tests/support/mpirun.sh")
job=("$ferry" generate --model "$work/demo" --prompt Emma --output "$work/out" --set sampling.max_tokens=2
    --set engine.threads=1 --set log.progress=off)

expect 2 "2 attention + 3 expert ranks = 5, but this world has 3 ranks; start 5 ranks (mpirun -n 5)" \
    "${run[@]}" 3 "${job[@]}" --set $d --set layout.attention_ranks=2 --set layout.expert_ranks=3
expect 2 "or set expert_ranks: 1" \
    "${run[@]}" 3 "${job[@]}" --set $d --set layout.attention_ranks=2 --set layout.expert_ranks=3
told=$(grep -c "^ferry: rank" "$work/log")
[ "$told" -eq 1 ] || { echo "FAILED: $told ranks tell what is wrong on all"; failed=$((failed + 1)); }
expect 2 "colocated uses every rank for both roles, but attention_ranks is 5 and this world has 2 ranks" \
    "${run[@]}" 2 "${job[@]}" --set layout.attention_ranks=5
expect 2 "tp_size 2 does not divide 3 attention ranks; these do: 1, 3" \
    "${run[@]}" 3 "${job[@]}" --set layout.tp_size=2
# Each task a world of its own: what a launcher of another MPI gives.
expect 2 "the launcher started 4 tasks, but each of them is an MPI world of its own" \
    env PMI_SIZE=4 "${job[@]}"
expect 2 "configuration differs between ranks: rank 0 on" \
    "${run[@]}" 1 "${job[@]}" : -n 1 "${job[@]}" --set engine.max_batch=7
expect 0 "cores for 40 threads of its ranks (20 each): expect low speed" \
    "${run[@]}" 2 "${job[@]}" --set engine.threads=20
# Shells permit few open files unless asked for more.
rm -rf "$work/out"
expect 0 "" "${run[@]}" 4 bash -c 'ulimit -Sn 20 && exec "$@"' - "${job[@]}"
# Nor have containers much shared memory.
if unshare --mount true 2>/dev/null; then
    rm -rf "$work/out"
    expect 0 "" unshare --mount sh -c 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"' - \
        "${run[@]}" 2 "${job[@]}"
fi
# The same program of another build: only its id is another one.
if command -v objcopy >/dev/null && objcopy -O binary --only-section=.note.gnu.build-id "$ferry" "$work/id" 2>/dev/null; then
    printf '\377\376\375' | dd of="$work/id" bs=1 seek=20 conv=notrunc 2>/dev/null
    objcopy --update-section .note.gnu.build-id="$work/id" "$ferry" "$work/ferry"
    expect 2 "executable differs between ranks: rank 0 on" \
        "${run[@]}" 1 "${job[@]}" : -n 1 "$work/ferry" "${job[@]:1}"
fi
# Roles from the launcher: the first program of the job holds the attention ranks.
rm -rf "$work/out"
expect 0 "disaggregated layout: 2 attention, 1 expert ranks of 3" \
    "${run[@]}" 2 "${job[@]}" --set layout.mode=from_launcher : -n 1 "${job[@]}" --set layout.mode=from_launcher
rm -rf "$work/out"
expect 2 "from_launcher takes a job of two components, attention ranks first, and this one has 1" \
    "${run[@]}" 2 "${job[@]}" --set layout.mode=from_launcher
expect 2 "and this one has no launcher" "${job[@]}" --set layout.mode=from_launcher
expect 2 "ferry: usage: FERRY_START_TIMEOUT_S: must be a whole number of seconds, 1 or more; is abc" \
    env FERRY_START_TIMEOUT_S=abc "${run[@]}" 2 "${job[@]}"
if "$ferry" --version | grep -q "UCX *[0-9]"; then
    expect 2 "FERRY_UCX_PATH: must be put or message; is puts" \
        env FERRY_UCX_PATH=puts "${run[@]}" 2 "${job[@]}" --set exchange.transport=ucx
fi
# A rank that never calls MPI: Open MPI itself would wait for ever.
expect 5 "MPI did not start within 3 s: some rank has not come" \
    env FERRY_START_TIMEOUT_S=3 "${run[@]}" 1 "${job[@]}" : -n 1 sleep 50
# Only the start has this deadline, in every command: this one lasts 7 s by the clock.
expect 0 "fixed at 2/s" \
    env FERRY_START_TIMEOUT_S=5 "${run[@]}" 2 "$ferry" bench throughput --model "$work/demo" --requests 14 --input 4 \
    --output 2 --arrivals fixed --rate 2 --repetitions 1 --warmup 0 --set engine.threads=1
# Errors of one rank alone, and of all: one line each, the job ends.
expect 2 "output.dir: 2 ranks need a folder for their results" \
    "${run[@]}" 2 "$ferry" generate --model "$work/demo" --prompt Emma
shard=$(ls "$work"/demo/experts-*.h5 | head -1)
size=$(stat -c %s "$shard")
printf '\377\376\375' | dd of="$shard" bs=1 seek=$((size - 64)) conv=notrunc 2>/dev/null
rm -rf "$work/out"
expect 3 "fails its checksum" "${run[@]}" 3 "${job[@]}"
[ "$failed" -eq 0 ] && echo "all messages as expected"
exit "$failed"
