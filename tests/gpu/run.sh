#!/usr/bin/env bash
# run.sh [--bundle DIR] [--quick]: everything that needs a GPU, in one call of at most 8 minutes: the kernel tests, the demo
# model against the CPU, ranks that share a GPU, NCCL, compute-sanitizer, benchmarks at published shapes beside the same
# layers in PyTorch. Prints a short table last and fails when anything failed.
#
# Takes the bundle in DIR (launch/bundle.sh; default build/bundle), so that a machine with a GPU needs neither compilers
# nor MPI; without one it builds one, where CMake finds what Ferry needs. --quick leaves out sanitizers and benchmarks.
# Logs of all pieces: build/gpu/.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
root=$PWD
bundle=build/bundle
quick=0
while [ $# -gt 0 ]; do
    case $1 in
        --bundle) bundle=${2:?"--bundle needs a folder"}; shift 2 ;;
        --quick) quick=1; shift ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "run.sh: unknown argument $1 (see --help)" >&2; exit 2 ;;
    esac
done
limit_s=${FERRY_GPU_LIMIT_S:-480}
logs=$root/build/gpu
rm -rf "$logs"
mkdir -p "$logs"
table=()
failed=0

left() { echo $((limit_s - SECONDS)); }
row() { table+=("$(printf '%-34s %-8s %6s  %s' "$1" "$2" "$3" "$4")"); }
# piece NAME SECONDS COMMAND...: its output goes to a log; $figures (may be empty) to the table.
piece() {
    local name=$1 seconds=$2 started=$SECONDS code
    shift 2
    if [ "$(left)" -lt 10 ]; then
        row "$name" skipped - "the $limit_s s are over"
        failed=1
        return 1
    fi
    [ "$seconds" -lt "$(left)" ] || seconds=$(left)
    timeout -k 5 "$seconds" "$@" >"$logs/$name.log" 2>&1
    code=$?
    case $code in
        0) row "$name" ok $((SECONDS - started))s "$(figures_of "$logs/$name.log")" ;;
        77) row "$name" skipped $((SECONDS - started))s "$(tail -n 1 "$logs/$name.log" | cut -c1-70)" ;;
        124 | 137) row "$name" FAILED $((SECONDS - started))s "still running after $seconds s"; failed=1 ;;
        *) row "$name" FAILED $((SECONDS - started))s "exit code $code: $(tail -n 1 "$logs/$name.log" | cut -c1-70)"; failed=1 ;;
    esac
    return $code
}
# What a log says of itself: "FIGURES ..." lines, or how many tests passed.
figures_of() {
    grep -h '^FIGURES ' "$1" | cut -d' ' -f2- | paste -sd';' | cut -c1-110 | grep . ||
        grep -hE '^\[  PASSED  \]' "$1" | sed 's/.*\] *//' | head -n 1
}
finish() {
    printf '\n%-34s %-8s %6s  %s\n' piece result time figures
    printf '%s\n' "${table[@]}"
    printf 'logs: %s\n' "$logs"
    exit "$failed"
}

if ! gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null) || [ -z "$gpu" ]; then
    echo "run.sh: this machine has no NVIDIA GPU that nvidia-smi can see: nothing was run"
    exit 77
fi
echo "$gpu"

if [ ! -x "$bundle/bin/ferry" ]; then
    echo "no bundle in $bundle: building"
    cmake --preset release >"$logs/configure.log" 2>&1 && cmake --build --preset release -j "$(nproc)" >"$logs/build.log" 2>&1 ||
        { tail -n 5 "$logs"/configure.log "$logs"/build.log; echo "run.sh: no bundle, and it cannot be built here"; exit 2; }
    bundle=build/bundle
    launch/bundle.sh --output "$bundle" $(find build/release/tests \( -name '*_gpu' -o -name cuda_kernels_bench \) \
        -type f -perm -u+x) || exit 2
fi
bin=$(cd "$bundle/bin" && pwd)
# NCCL and cuBLAS of a Python environment, where the machine has no others.
site=$(python3 -c 'import site, sys; print("\n".join(site.getsitepackages()))' 2>/dev/null)
for folder in $(for s in $site; do ls -d "$s"/nvidia/*/lib "$s"/nvidia/lib 2>/dev/null; done); do
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
done
export LD_LIBRARY_PATH
export FERRY_TEST_SOURCE_DIR=$root
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
piece version 20 "$bin/ferry" --version || finish

# ---- Kernels, layers and whole models in GoogleTest programs
for program in "$bin"/*_gpu; do
    [ -x "$program" ] && piece "$(basename "$program")" 150 "$program"
done

# ---- The demo model: GPU against CPU
work=$logs/demo
demo() { # NAME ARGUMENT...: greedy continuations into $work/NAME
    local name=$1
    shift
    "$bin/ferry" generate --model "$work/checkpoint" --output "$work/$name" --set sampling.temperature=0 \
        --set sampling.max_tokens=48 --set engine.cache_pages=32 --set engine.max_context=256 --set log.progress=off \
        --prompt "It is a truth universally acknowledged, that" --prompt "Emma was" --prompt "The evening was" "$@"
}
tokens() { sed 's/.*"tokens": *\(\[[^]]*\]\).*/\1/' "$work/$1/completions.jsonl"; }
same_tokens() { # A B
    [ -n "$(tokens "$1")" ] && [ "$(tokens "$1")" = "$(tokens "$2")" ] || { diff <(tokens "$1") <(tokens "$2"); return 1; }
}
convert_demo() { "$bin/ferry" convert configs/demo "$work/checkpoint"; }
demo_on_gpu() {
    demo cpu && demo gpu --set engine.device=cuda && demo again --set engine.device=cuda && same_tokens cpu gpu &&
        same_tokens gpu again && echo "FIGURES $(tokens gpu | tr ',' '\n' | wc -l) tokens equal to the CPU's, twice"
}
ranks_share_gpu() {
    local transport
    for transport in ucx mpi; do
        PATH=$bin:$PATH mpirun -n 3 --oversubscribe "$bin/ferry" generate --model "$work/checkpoint" \
            --output "$work/$transport" --set sampling.temperature=0 --set sampling.max_tokens=48 \
            --set engine.cache_pages=32 --set engine.max_context=256 --set log.progress=off --set engine.device=cuda \
            --set layout.mode=disaggregated --set layout.attention_ranks=1 --set layout.expert_ranks=2 \
            --set exchange.transport=$transport --prompt "It is a truth universally acknowledged, that" \
            --prompt "Emma was" --prompt "The evening was" || return 1
        same_tokens cpu "$transport" || return 1
    done
    echo "FIGURES 1 attention and 2 expert ranks on one GPU, ucx and mpi"
}
nccl_alone() {
    demo nccl --set engine.device=cuda --set exchange.transport=nccl && same_tokens cpu nccl &&
        echo "FIGURES one rank over NCCL"
}
nccl_refuses_sharing() {
    local code=0
    [ "$(nvidia-smi -L | wc -l)" = 1 ] || { echo "needs a machine with one GPU"; return 77; }
    PATH=$bin:$PATH mpirun -n 2 --oversubscribe "$bin/ferry" generate --model "$work/checkpoint" --output "$work/refused" \
        --set engine.device=cuda --set exchange.transport=nccl --set layout.mode=colocated --prompt Emma || code=$?
    [ "$code" = 2 ] && echo "FIGURES refused with exit code 2"
}
memory_named() {
    local code=0
    demo toolarge --set engine.device=cuda --set engine.cache_pages=100000000 >"$work/memory" 2>&1 || code=$?
    cat "$work/memory"
    [ "$code" = 6 ] && grep -q 'latent cache' "$work/memory" && echo "FIGURES exit code 6 with the plan"
}
mkdir -p "$work"
# Functions of this script as pieces: in a shell of their own, so that they can be timed out.
export -f demo tokens same_tokens convert_demo demo_on_gpu ranks_share_gpu nccl_alone nccl_refuses_sharing memory_named
export bin work
shell_piece() { piece "$1" "$2" bash -c "set -o pipefail; $1"; }
if shell_piece convert_demo 60; then
    shell_piece demo_on_gpu 90
    shell_piece memory_named 30
    shell_piece ranks_share_gpu 90
    shell_piece nccl_alone 60
    shell_piece nccl_refuses_sharing 30
fi

# ---- Races and addresses
if [ "$quick" = 0 ]; then
    if ! command -v compute-sanitizer >/dev/null; then
        row sanitizers skipped - "compute-sanitizer is not installed"
    else
        for tool in memcheck racecheck; do
            for program in "$bin"/*kernels*_gpu "$bin"/exchange_device_test_gpu; do
                [ -x "$program" ] || continue
                name=$(basename "$program")
                piece "${tool}_$name" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 "$bin/../libexec/$name" \
                    --gtest_filter="${FERRY_SANITIZER_FILTER:-*}"
            done
        done
    fi
fi

# ---- Benchmarks, beside PyTorch on the same machine
if [ "$quick" = 0 ]; then
    bench_kernels() {
        "$bin/cuda_kernels_bench" | tee "$logs/kernels.txt" && echo "FIGURES $(wc -l <"$logs/kernels.txt") lines in $logs/kernels.txt"
    }
    # What one of eight expert ranks computes of a layer with all 256 experts.
    bench_expert_ranks() {
        "$bin/ferry" bench layer --shape configs/models/deepseek-v3.yaml --set model.layers=4 --set engine.device=cuda \
            --decode 128 --context 1024 --prefill 0 --repetitions 5 --expert-ranks 8 --json "$logs/expert-ranks.json" &&
            echo "FIGURES figures in $logs/expert-ranks.json"
    }
    # Four layers of DeepSeek-V3: three with a dense MLP, one with all 256 experts.
    bench_ferry() {
        local context
        for context in 1024 8192; do
            "$bin/ferry" bench layer --shape configs/models/deepseek-v3.yaml --set model.layers=4 --set engine.device=cuda \
                --decode 1,32,128 --context $context --prefill "$([ $context = 1024 ] && echo 512,2048 || echo 0)" \
                --json "$logs/ferry-$context.json" || return 1
        done
        echo "FIGURES $(ls "$logs"/ferry-*.json | wc -l) files of figures in $logs"
    }
    export -f bench_ferry bench_kernels bench_expert_ranks
    export logs
    if [ -x "$bin/cuda_kernels_bench" ]; then
        shell_piece bench_kernels 60
    else
        row bench_kernels skipped - "the bundle has no cuda_kernels_bench"
    fi
    shell_piece bench_ferry 150
    if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        piece peer_torch 90 python3 tests/gpu/peer_torch.py --json "$logs/torch.json" --compare "$logs"/ferry-*.json
    else
        row peer_torch skipped - "no PyTorch that sees the GPU"
    fi
    shell_piece bench_expert_ranks 90
fi
finish
