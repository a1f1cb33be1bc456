#!/usr/bin/env bash
# doctor_test.sh FERRY SOURCE_DIR NVML_DIR: `ferry doctor` alone, on several ranks, on ranks that differ, and where it must fail.
set -uo pipefail
ferry=$1
source=$2
nvml=$3 # holds a libnvidia-ml.so.1, see nvml_stand_in.cpp
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
match=-E
source "$source/tests/support/expect.sh"
run=("$source/tests/support/mpirun.sh")
doctor=("$ferry" doctor --size 4)

expect 0 "^mpi +ok .*Open MPI .*, 1 rank on 1 host|^mpi +ok" "${doctor[@]}"
for check in ferry mpi launcher cores memlock "open files" stack cpu memory /dev/shm "huge pages" ucx gpu files hdf5; do
    grep -q "^$check  *\(ok\|warn\) " log || { echo "FAILED: no line for $check"; cat log; failed=1; }
done
grep -q "^0 failed" log || { echo "FAILED: no sum"; failed=1; }
expect 0 '"check": "hdf5"' "${doctor[@]}" --json
expect 0 "^launcher +ok .*mpirun, 3 tasks" "${run[@]}" 3 "${doctor[@]}"
[ "$(grep -c "^launcher" log)" = 1 ] || { echo "FAILED: more than one table"; cat log; failed=1; }
# Ranks with other limits are told apart.
expect 0 "^open files +warn .* 300$" "${run[@]}" 2 "${doctor[@]}" : -n 1 sh -c "ulimit -n 300; exec '$ferry' doctor --size 4"
grep -q "fix: 3 ranks need about 1024: ulimit -Hn 1024" log || { echo "FAILED: no fix"; cat log; failed=1; }
# A GPU's driver, found while running.
expect 0 "^gpu +warn .* 2 x Stand-in GPU, 80 GiB" env LD_LIBRARY_PATH="$nvml" "${doctor[@]}"
grep -q "fix: more than a tenth of a GPU's memory is taken" log || { echo "FAILED: GPU in use"; cat log; failed=1; }
grep -qE "^cuda +(ok|warn|fail) .* driver 570.86.15, CUDA up to 99.0" log || { echo "FAILED: driver"; cat log; failed=1; }
# What fails.
expect 2 "^files +fail .*nowhere.*No such file" "${doctor[@]}" --dir nowhere
grep -q "ferry: usage: doctor: 1 check failed" log || { echo "FAILED: not told at the end"; cat log; failed=1; }
expect 2 "^launcher +fail .* 4 tasks, each an MPI world of its own" env PMI_SIZE=4 "${doctor[@]}"
expect 2 "size" "$ferry" doctor --size 0
[ -z "$(find . -name '.ferry-doctor*')" ] || { echo "FAILED: left files behind"; failed=1; }
[ "$failed" -eq 0 ] && echo "all findings as expected"
exit "$failed"
