#!/usr/bin/env bash
# run_test.sh SOURCE_DIR: tests/gpu/run.sh itself, with stand-ins for the GPU, the bundle and PyTorch: every piece is run
# and stands in the table whatever happens to the others, failed tests are run alone and named, reasons are printed.
set -euo pipefail
source=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/ferry-gpu-run.XXXXXX")
trap 'rm -rf "$work"' EXIT
fail() { echo "run_test: $*" >&2; exit 1; }

mkdir -p "$work"/{tests/gpu,tools,build/bundle/bin}
cp "$source"/tests/gpu/{run.sh,peer_torch.py} "$work/tests/gpu/"
bin=$work/build/bundle/bin
script() { # FILE: a script that says what stands on the standard input
    { echo '#!/usr/bin/env bash'; cat; } >"$1"
    chmod +x "$1"
}
script "$work/tools/nvidia-smi" <<<'[ -e "$0.none" ] && exit 9; echo "Stand-in GPU, 1.0, 1 MiB"'
script "$work/tools/python3" <<<'[ "$1" = -c ] || exit 5; case $2 in *torch*) echo "no module named torch" >&2; exit 1 ;; esac'
script "$work/tools/compute-sanitizer" <<'SH'
[ "$2" = racecheck ] && { echo "========= Device not supported"; exit 1; }
case $* in *=Gone.\**) echo "========= Invalid __global__ read of size 4 bytes"; exit 9 ;; esac
SH
script "$bin/mpirun" <<<'while [[ $1 != */ferry ]]; do shift; done; FAKE_RANKS=1 "$@"'
script "$bin/ferry" <<'SH'
case $* in
    --version) echo "ferry 1" ;;
    convert*) mkdir -p "$3" ;;
    *transport=nccl*cuda_graphs=false*) ;;
    *mode=colocated*) exit 2 ;;
    *transport=nccl*) echo "CUDA: let a stream wait: refused"; exit 5 ;;
    *cache_pages=100000000*) echo "needs 3 GiB for the latent cache"; exit 6 ;;
    bench*8192*) echo "CUDA: launch _Zkernel of 1 x 1 x 1 blocks: no" >&2; exit 5 ;;
    bench*) exit 0 ;;
esac
[ "$1" = generate ] || exit 0
while [ "$1" != --output ]; do shift; done
mkdir -p "$2" && echo '{"tokens": [1, 2, 3]}' >"$2/completions.jsonl"
SH
script "$bin/cuda_kernels_bench" <<<'echo "a line"; [ "$1" != prefill ] || { echo "CUDA: no prefill"; exit 1; }'
# Suites of two tests each: Good passes, in Bad one fails, in Gone one dies, Slow hangs unless it is alone.
script "$bin/gpu_tests" <<'SH'
[ -e "$0.no_gpu" ] && { echo "no GPU can be used: driver too old"; exit 77; }
list() { printf '%s.\n  works\n  may  # GetParam() = 1\n' "$1"; }
case $* in
    *list_tests*filter=*) list "$(sed 's/.*filter=\(.*\)\.\*/\1/' <<<"$*")" ;;
    *list_tests*) echo "Stand-in GPU, compute capability 9.0"; for suite in Good All/Bad Gone Slow CudaRuns; do list $suite; done ;;
    *.works) ;;
    *=Good.*) echo "[  PASSED  ] 2 tests." ;;
    *=All/Bad.*) echo "x_test.cpp:7: Failure"; echo "Expected: (0.5) < (0.1), 16 heads"; exit 1 ;;
    *=Gone.*) kill -SEGV $$ ;;
    *=Slow.*) [ -n "$CUDA_LAUNCH_BLOCKING" ] || sleep 100 ;;
esac
SH

run() { # CODE ARGUMENT...
    local code=0 wanted=$1
    shift
    PATH=$work/tools:$PATH "$work/tests/gpu/run.sh" "$@" >"$work/out" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || fail "exit code $code, not $wanted: $(cat "$work/out")"
}
has() { grep -qE "$1" "$work/out" || fail "no '$1' in: $(cat "$work/out")"; }

export FERRY_GPU_LIMIT_S=300
sed -i 's/ 150 "\$bin/ 2 "$bin/' "$work/tests/gpu/run.sh" # the slow suite's time
run 1
has '^Good +ok +[0-9]+s  2 tests'
has '^All_Bad +FAILED .*exit code 1'
has '^All_Bad.alone +FAILED .*1 of 2 tests fail alone: All/Bad.may'
has 'Expected: \(0.5\) < \(0.1\), 16 heads'
has '^Gone +FAILED .*exit code 139'
has '^Gone.alone +FAILED .*1 of 2 tests fail alone: Gone.may'
has '^Slow +FAILED .*still running after 2 s'
has '^Slow.alone +ok .*each of 2 tests passes alone'
for piece in demo_kernel_by_kernel demo_as_graphs nccl_kernel_by_kernel memory_named ranks_share_gpu_ucx ranks_share_gpu_mpi \
    nccl_refuses_sharing bench_decode bench_experts bench_at_1024 bench_expert_ranks; do
    has "^$piece +ok "
done
has '^demo_as_graphs .* 3 tokens equal'
has '^nccl_as_graphs +FAILED .*exit code 5'
has '^bench_prefill +FAILED .*CUDA: no prefill'
has '^bench_at_8192 +FAILED .*_Zkernel'
has '^peer_torch +skipped .*no module named torch'
has '^memcheck +FAILED .*1 of 4 suites: Gone'
has 'Invalid __global__ read'
has '^racecheck +skipped .*cannot use this GPU'
[ -s "$work/build/gpu-logs.tar.gz" ] || fail "no archive of the logs"
[[ $(tail -n 1 "$work/out") == logs:* ]] || fail "the table does not come last"
FERRY_GPU_LIMIT_S=5 run 1
has '^version +skipped .*the 5 s are over'
script "$bin/gpu_tests.no_gpu" <<<''
run 1 --quick
has '^gpu_tests +FAILED .*driver too old'
has '^demo_as_graphs +ok '
rm "$bin/gpu_tests.no_gpu"

sed -i 's/ Bad Gone Slow / /; s/All\/Bad Gone Slow//' "$bin/gpu_tests"
script "$work/tools/nvidia-smi.none" <<<''
run 77
rm "$work/tools/nvidia-smi.none"
sed -i 's/.*transport=nccl.*exit 5.*//; s/.*bench\*8192.*//' "$bin/ferry"
tar -C "$work/build" -czf "$work/bundle.tar.gz" bundle
rm -r "$work/build/bundle"
run 0 --quick --bundle "$work/bundle.tar.gz"
has '^nccl_as_graphs +ok '
echo "run_test: ok"
