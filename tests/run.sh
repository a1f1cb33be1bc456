#!/usr/bin/env bash
# tests/run.sh [CTEST_ARG...]: installs what is missing, builds, runs every test that this machine can run.
# `tests/run.sh -L unit` runs one label (unit, soak, mpi, cluster, slurm). FERRY_JOBS sets the number of build jobs.
# FERRY_SANITIZERS=1 also runs unit tests, 4-rank tests and graphs of several emulated GPUs under ASan and UBSan, and
# threads (pool, watchdog) under TSan, each in a build of its own. FERRY_KILLS=200 makes the kill test longer.
# FERRY_FUZZ=0 leaves the fuzz targets out; FERRY_FUZZ_SECONDS says how long each runs (60).
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
step() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

step "install"
launch/install_deps.sh --tests

step "format and layers"
if command -v clang-format >/dev/null; then
    git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror
fi
tests/check_layers

step "build"
cmake --preset release
cmake --build --preset release -j "${FERRY_JOBS:-$(nproc)}"

# The fuzz targets, which only the readers that they reach are built for, with clang++ and sanitizers. They are built in
# what time the tests leave: many of those wait for ranks more than they compute.
libfuzzer() {
    echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
        clang++ -x c++ -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null
}
fuzz_build=
if [ "${FERRY_FUZZ:-1}" = 0 ]; then
    step "fuzz: skipped, FERRY_FUZZ=0"
elif ! command -v clang++ >/dev/null || ! libfuzzer; then
    step "fuzz: skipped, no clang++ with libFuzzer here"
else
    cmake --preset fuzz -DFERRY_FUZZ_SECONDS="${FERRY_FUZZ_SECONDS:-60}" >/dev/null
    # A session of its own, to be ended as one; Linux may give sessions equal shares whatever their processes' nice value.
    setsid sh -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$@"' sh \
        cmake --build --preset fuzz -j "${FERRY_JOBS:-$(nproc)}" >build/fuzz/build.log 2>&1 &
    fuzz_build=$!
    trap 'kill -- "-$fuzz_build" 2>/dev/null || true' EXIT
fi

step "test" # one more at a time than there are cores: most wait, for ranks and for time to pass
ctest --test-dir build/release --output-on-failure -j "${FERRY_JOBS:-$(($(nproc) + 1))}" "$@"

if [ "${FERRY_SANITIZERS:-0}" = 1 ]; then
    # What MPI and UCX keep at the end is not ours.
    export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1
    export FERRY_TEST_TIMEOUT_S=${FERRY_TEST_TIMEOUT_S:-440} # of ranks: sanitized programs are slow
    step "asan and ubsan: unit and 4-rank tests"
    cmake --preset asan
    cmake --build --preset asan -j "${FERRY_JOBS:-$(nproc)}"
    ctest --test-dir build/asan -L unit --output-on-failure -j "${FERRY_JOBS:-$(nproc)}"
    ctest --test-dir build/asan -L mpi -R '\.n4$|layouts_test|startup_test|nccl_graphs_test' --output-on-failure
    step "tsan: worker threads and watchdog"
    cmake --preset tsan
    cmake --build --preset tsan -j "${FERRY_JOBS:-$(nproc)}" --target base_test watchdog_test
    # UCX replaces madvise, which a thread calls when TSan has already forgotten it: TSan would crash.
    UCX_MEM_MMAP_HOOK_MODE=none ctest --test-dir build/tsan -R '^base_test$|^watchdog_test\.n[124]$' --output-on-failure
fi

if [ -n "$fuzz_build" ]; then
    step "fuzz, ${FERRY_FUZZ_SECONDS:-60} s each"
    wait "$fuzz_build" || { cat build/fuzz/build.log; exit 1; }
    trap - EXIT
    ctest --test-dir build/fuzz -L fuzz --output-on-failure -j 3 # three at a time
fi

step "done"
