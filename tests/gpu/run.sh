#!/usr/bin/env bash
# run.sh [--bundle DIR|ARCHIVE] [--quick]: everything that needs a GPU, in one call of at most 8 minutes: the kernel tests, the demo
# model against the CPU, ranks that share a GPU, NCCL, compute-sanitizer, benchmarks at published shapes beside the same
# layers in PyTorch. Prints a short table last and fails when anything failed.
#
# Takes the bundle in DIR (default build/bundle; made by launch/bundle.sh --gpu-tests) or in an archive of it
# (tar -C build -czf build/bundle.tar.gz bundle), so that a machine with a GPU needs neither compilers nor MPI; without one
# it builds one, where CMake finds what Ferry needs. --quick leaves out sanitizers and benchmarks. Logs of all pieces:
# build/gpu/. Tests of suites that fail are run once more, each alone.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
root=$PWD
bundle=build/bundle
quick=0
while [ $# -gt 0 ]; do
    case $1 in
        --bundle) bundle=${2:?"--bundle needs a folder"}; shift 2 ;;
        --quick) quick=1; shift ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "run.sh: unknown argument $1 (see --help)" >&2; exit 2 ;;
    esac
done
limit_s=${FERRY_GPU_LIMIT_S:-480}
logs=$root/build/gpu
rm -rf "$logs"
mkdir -p "$logs"
table=()
failed=()
started=()
incomplete=0
most_at_once=16

left() { echo $((limit_s - SECONDS)); }
row() {
    table+=("$(printf '%-34s %-8s %6s  %s' "$1" "$2" "$3" "$4")")
    printf '%s: %s\n' "$1" "$2"
}
# start NAME SECONDS COMMAND...: a piece in the background, its output in a log.
start() {
    local name=$1 seconds=$2 time_left
    shift 2
    started+=("$name")
    while [ "$(jobs -rp | wc -l)" -ge "$most_at_once" ]; do sleep 0.2; done
    time_left=$(left)
    if [ "$time_left" -lt 10 ]; then
        echo "late 0 0" >"$logs/$name.code"
        return
    fi
    [ "$seconds" -lt "$time_left" ] || seconds=$time_left
    (
        began=$SECONDS
        timeout -k 5 "$seconds" "$@" >"$logs/$name.log" 2>&1 </dev/null &
        trap 'kill $!' TERM
        wait $!
        echo "$? $((SECONDS - began)) $seconds" >"$logs/$name.code"
    ) &
}
trap 'trap - INT TERM; kill $(jobs -p) 2>/dev/null; wait; exit 130' INT TERM
# collect: waits for what was started and puts it into the table in that order. Fails when one of them did.
collect() {
    local name code spent limit result note worst=0
    wait
    for name in ${started[@]+"${started[@]}"}; do
        read -r code spent limit <"$logs/$name.code"
        result=FAILED
        case $name-$code in
            *-late) result=skipped note="the $limit_s s are over" incomplete=1 ;;
            *-0) result=ok note=$(figures_of "$logs/$name.log") ;;
            gpu_tests-77) note=$(last_line "$name") ;; # there is a GPU
            *-77) result=skipped note=$(last_line "$name") ;;
            *-124 | *-137) note="still running after $limit s" ;;
            *) note="exit code $code: $(last_line "$name")" ;;
        esac
        row "$name" $result "${spent}s" "$note"
        [ $result != FAILED ] || failed+=("$name")
        [ "$code" = 0 ] || worst=1
    done
    started=()
    return $worst
}
piece() { start "$@" && collect; }
last_line() { tail -n 1 "$logs/$1.log" | cut -c1-100; }
# What a log says of itself: "FIGURES ..." lines, or how many tests passed.
figures_of() {
    local figures
    figures=$(grep -ah '^FIGURES ' "$1" | cut -d' ' -f2- | paste -sd';' | cut -c1-110)
    [ -n "$figures" ] || figures=$(grep -am 1 '^\[  PASSED  \]' "$1" | sed 's/.*\] *//')
    echo "$figures"
}
# What of a log says why: lines with reasons, and its end.
excerpt() {
    printf -- '---- %s\n' "$1"
    {
        grep -am 10 -E 'Failure|FAILED alone|[Ee]rror|CUDA|Expected|[Aa]ctual|evaluates to|differ|Which is' "$logs/$1.log"
        tail -n 4 "$logs/$1.log"
    } 2>/dev/null | cut -c1-160 | awk '!seen[$0]++'
}
finish() {
    local name
    printf '\n'
    for name in ${failed[@]+"${failed[@]}"}; do
        [[ " ${failed[*]} " == *" $name.alone "* ]] || excerpt "$name"
    done | tail -n 80
    tar -czf "$root/build/gpu-logs.tar.gz" -C "$root/build" --exclude gpu/demo/checkpoint gpu 2>/dev/null
    printf '\n%s\n%-34s %-8s %6s  %s\n' "$gpu" piece result time figures
    printf '%s\n' "${table[@]}"
    printf 'logs: %s, together in build/gpu-logs.tar.gz; %s s\n' "$logs" "$SECONDS"
    exit $((${#failed[@]} > 0 || incomplete))
}

if ! gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null) || [ -z "$gpu" ]; then
    echo "run.sh: this machine has no NVIDIA GPU that nvidia-smi can see: nothing was run"
    exit 77
fi
echo "$gpu"

if [ -f "$bundle" ]; then
    rm -rf build/unpacked
    mkdir -p build/unpacked
    tar -xf "$bundle" -C build/unpacked --strip-components=1 || { echo "run.sh: $bundle cannot be unpacked"; exit 2; }
    bundle=build/unpacked
fi
if [ ! -x "$bundle/bin/ferry" ]; then
    echo "no bundle in $bundle: building"
    cmake --preset release >"$logs/configure.log" 2>&1 &&
        cmake --build --preset release -j "$(nproc)" --target ferry gpu_tests >"$logs/build.log" 2>&1 ||
        { tail -n 5 "$logs"/configure.log "$logs"/build.log; echo "run.sh: no bundle, and it cannot be built here"; exit 2; }
    bundle=build/bundle
    launch/bundle.sh --gpu-tests --output "$bundle" || exit 2
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

# ---- Kernels, layers and whole models: suites of tests at the same time, each in a process of its own; meanwhile the demo
# model's checkpoint and what the CPU makes of it
work=$logs/demo
mkdir -p "$work"
suites=() kernel_suites=()
# Each as many tokens as the best is at least 0.06 above the second on the CPU: GPUs round the inputs of products to bf16,
# and sum in another order.
cat >"$work/requests.jsonl" <<'JSONL'
{"prompt": "Emma was", "max_tokens": 12}
{"prompt": "The evening was", "max_tokens": 26}
{"prompt": "She had", "max_tokens": 10}
{"prompt": "In the morning", "max_tokens": 13}
{"prompt": "Mr. Darcy", "max_tokens": 10}
JSONL
settings=(--set sampling.temperature=0 --set engine.cache_pages=32 --set engine.max_context=256 --set log.progress=off
    --input "$work/requests.jsonl")
demo() { # NAME ARGUMENT...: greedy continuations into $work/NAME
    local name=$1
    shift
    "$bin/ferry" generate --model "$work/checkpoint" --output "$work/$name" "${settings[@]}" "$@"
}
tokens() { sed 's/.*"tokens": *\[\([^]]*\)\].*/\1/' "$work/$1/completions.jsonl"; }
same_tokens() { # A B
    [ -n "$(tokens "$1")" ] && paste -d'|' <(tokens "$1") <(tokens "$2") | awk -F'|' -v a="$1" -v b="$2" '
        { n = split($1, left, ", *"); m = split($2, right, ", *")
          for (i = 1; i <= n || i <= m; ++i) if (left[i] != right[i]) {
              printf "%s and %s differ: request %d, token %d is \"%s\" and \"%s\"\n", a, b, NR, i, left[i], right[i]
              exit 1
          } }'
}
convert_demo() { "$bin/ferry" convert configs/demo "$work/checkpoint" && demo cpu --set engine.device=cpu; }
# Functions of this script as pieces: in a shell of their own, so that they can be timed out.
shell_start() { # NAME SECONDS FUNCTION ARGUMENT...
    local name=$1 seconds=$2
    shift 2
    start "$name" "$seconds" bash -c "set -o pipefail; $(declare -p bin work logs settings suites kernel_suites); $(declare -f); \"\$@\"" _ "$@"
}
shell_piece() { shell_start "$1" "$2" "${@:3}" && collect; }
# Every test of a suite in a process of its own, kernel by kernel: an illegal address takes all later tests of its
# process with it, and is reported at some later call.
alone() { # SUITE
    local folder=$logs/$1.alone num
    mkdir -p "$folder"
    "$bin/gpu_tests" --gtest_list_tests --gtest_filter="${1//_//}.*" |
        awk '/^[^ ].*\.$/ || /^[^ ].*\.  #/ { suite = $1 } /^ / { print suite $1 }' >"$folder/tests"
    run_alone() { # PROGRAM TEST FOLDER
        local log=$3/${2//\//_}.log code=0
        CUDA_LAUNCH_BLOCKING=1 timeout -k 5 40 "$1" --gtest_filter="$2" >"$log" 2>&1 || code=$?
        [ "$code" = 0 ] && return
        echo "FAILED alone: $2 (exit code $code)"
        grep -am 3 -E 'Failure|CUDA|evaluates to|differ' "$log"
    }
    export -f run_alone
    xargs -P 8 -I{} bash -c 'run_alone "$@"' _ "$bin/gpu_tests" {} "$folder" <"$folder/tests" >"$folder/failed"
    cat "$folder/failed"
    num=$(grep -ac '^FAILED alone' "$folder/failed")
    if [ "$num" = 0 ]; then
        echo "FIGURES each of $(wc -l <"$folder/tests") tests passes alone"
        return
    fi
    echo "$num of $(wc -l <"$folder/tests") tests fail alone: $(awk '/^FAILED alone/ { print $3 }' "$folder/failed" | paste -sd' ')"
    return 1
}

shell_start convert_demo 60 convert_demo
piece gpu_tests 30 "$bin/gpu_tests" --gtest_list_tests &&
    mapfile -t suites < <(awk '/^[^ ].*\.$/ || /^[^ ].*\.  #/ { sub(/\.$/, "", $1); print $1 }' "$logs/gpu_tests.log")
for suite in ${suites[@]+"${suites[@]}"}; do
    start "${suite//\//_}" 150 "$bin/gpu_tests" --gtest_filter="$suite.*"
done
collect
for suite in ${suites[@]+"${suites[@]}"}; do
    [[ " ${failed[*]-} " != *" ${suite//\//_} "* ]] || shell_start "${suite//\//_}.alone" 60 alone "${suite//\//_}"
done
collect

# ---- The demo model: GPU against CPU
demo_as_cpu() { # NAME WORDS ARGUMENT...: the CPU's tokens
    local name=$1 words=$2
    shift 2
    demo "$name" --set engine.device=cuda "$@" && same_tokens cpu "$name" &&
        echo "FIGURES $(tokens "$name" | tr ',' '\n' | wc -l) tokens equal to the CPU's, $words"
}
demo_kernel_by_kernel() { demo_as_cpu launched "kernel by kernel" --set engine.cuda_graphs=false; }
demo_as_graphs() {
    demo_as_cpu graphs "as CUDA graphs" && demo again --set engine.device=cuda && same_tokens graphs again
}
ranks_share_gpu() { # TRANSPORT
    PATH=$bin:$PATH mpirun -n 3 --oversubscribe "$bin/ferry" generate --model "$work/checkpoint" --output "$work/$1" \
        "${settings[@]}" --set engine.device=cuda --set layout.mode=disaggregated --set layout.attention_ranks=1 \
        --set layout.expert_ranks=2 --set exchange.transport="$1" && same_tokens cpu "$1" &&
        echo "FIGURES 1 attention and 2 expert ranks on one GPU"
}
nccl_refuses_sharing() {
    local code=0
    [ "$(nvidia-smi -L | wc -l)" = 1 ] || { echo "needs a machine with one GPU"; return 77; }
    PATH=$bin:$PATH mpirun -n 2 --oversubscribe "$bin/ferry" generate --model "$work/checkpoint" --output "$work/refused" \
        "${settings[@]}" --set engine.device=cuda --set exchange.transport=nccl --set layout.mode=colocated || code=$?
    [ "$code" = 2 ] && echo "FIGURES refused with exit code 2"
}
memory_named() {
    local code=0 text
    text=$(demo toolarge --set engine.device=cuda --set engine.cache_pages=100000000 2>&1) || code=$?
    echo "$text"
    [ "$code" = 6 ] && [[ $text == *'latent cache'* ]] && echo "FIGURES exit code 6 with the plan"
}
if [ -e "$work/cpu/completions.jsonl" ]; then
    shell_start demo_kernel_by_kernel 90 demo_kernel_by_kernel
    shell_start demo_as_graphs 90 demo_as_graphs
    shell_start nccl_kernel_by_kernel 90 demo_as_cpu nccl "one rank over NCCL" --set exchange.transport=nccl \
        --set engine.cuda_graphs=false
    shell_start nccl_as_graphs 90 demo_as_cpu nccl-graphs "one rank over NCCL, as CUDA graphs" \
        --set exchange.transport=nccl
    shell_start memory_named 30 memory_named
    collect
    shell_piece ranks_share_gpu_ucx 90 ranks_share_gpu ucx
    shell_piece ranks_share_gpu_mpi 90 ranks_share_gpu mpi
    shell_piece nccl_refuses_sharing 30 nccl_refuses_sharing
fi

# ---- Benchmarks, beside PyTorch on the same machine
if [ "$quick" = 0 ]; then
    bench_kernels() { # decode | prefill | experts | linear | sample
        "$bin/cuda_kernels_bench" "$1" | tee "$logs/$1.txt" && echo "FIGURES $(wc -l <"$logs/$1.txt") lines in $logs/$1.txt"
    }
    # Four layers of DeepSeek-V3, three with a dense MLP, one with all 256 experts: fp8 as published, a bf16 cache.
    bench_layer() { # JSON ARGUMENT...
        local json=$1
        shift
        "$bin/ferry" bench layer --shape configs/models/deepseek-v3.yaml --set model.layers=4 --set engine.device=cuda \
            --set numerics.cache_dtype=bf16 --set numerics.fp8_activations=true --json "$json" "$@" && echo "FIGURES figures in $json"
    }
    if [ -x "$bin/cuda_kernels_bench" ]; then
        for kernel in decode prefill experts linear sample; do shell_piece "bench_$kernel" 60 bench_kernels "$kernel"; done
    else
        row bench_kernels skipped - "the bundle has no cuda_kernels_bench"
    fi
    shell_piece bench_at_1024 90 bench_layer "$logs/ferry-1024.json" --decode 1,32,128 --context 1024 --prefill 512,2048
    shell_piece bench_at_8192 90 bench_layer "$logs/ferry-8192.json" --decode 1,32,128 --context 8192 --prefill 0
    if reason=$(python3 -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "PyTorch sees no GPU")' 2>&1); then
        compare=()
        for json in "$logs"/ferry-*.json; do
            [ ! -e "$json" ] || compare+=("$json")
        done
        piece peer_torch 90 python3 -u tests/gpu/peer_torch.py --json "$logs/torch.json" \
            ${compare[@]+--compare "${compare[@]}"}
    else
        row peer_torch skipped - "$(tail -n 1 <<<"$reason" | cut -c1-100)"
    fi
fi

# ---- Races and addresses
if [ "$quick" = 0 ]; then
    PATH=$PATH:/usr/local/cuda/bin
    sanitised() { # TOOL: suites of kernels at the same time; says which have errors, and their first ones
        local folder=$logs/$1 num
        mkdir -p "$folder"
        sanitise() { # TOOL SUITE FOLDER
            local log=$3/${2//\//_}.log code=0 options=()
            # cuBLAS's own kernels synchronise in ways that racecheck does not know: hazards are reported inside them.
            [ "$1" != racecheck ] || options=(--kernel-name-exclude kernel_substring=nvjet)
            # Tests make CUDA refuse calls on purpose, and die in processes of their own.
            timeout -k 5 100 compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 --report-api-errors no \
                ${options[@]+"${options[@]}"} --target-processes application-only "$4" --gtest_filter="$2.*-*OnAGpu*:StepArrays.AGraph*" >"$log" 2>&1 || code=$?
            [ "$code" = 0 ] && return
            echo "FAILED: $2 (exit code $code)"
            grep -am 6 -E 'Invalid|hazard|[Ee]rror|Failure|CUDA|=========     (at|in|Host)' "$log"
        }
        export -f sanitise
        printf '%s\n' "${kernel_suites[@]}" |
            xargs -P 8 -I{} bash -c 'sanitise "$@"' _ "$1" {} "$folder" "$bin/../libexec/gpu_tests" >"$folder/failed"
        cat "$folder/failed"
        if [ "$(grep -alE 'Device not supported' "$folder"/*.log | wc -l)" -gt 0 ]; then
            echo "compute-sanitizer cannot use this GPU"
            return 77
        fi
        num=$(grep -ac '^FAILED' "$folder/failed")
        [ "$num" = 0 ] && echo "FIGURES ${#kernel_suites[@]} suites without errors" && return
        echo "$num of ${#kernel_suites[@]} suites: $(awk '/^FAILED/ { print $2 }' "$folder/failed" | paste -sd' ')"
        return 1
    }
    kernel_suites=()
    for suite in ${suites[@]+"${suites[@]}"}; do
        # Whole models would take too long.
        case $suite in *CudaGolden | CudaDemoModel | CudaRuns) ;; *) kernel_suites+=("$suite") ;; esac
    done
    if ! command -v compute-sanitizer >/dev/null; then
        row sanitizers skipped - "compute-sanitizer is not installed"
    else
        shell_start memcheck 130 sanitised memcheck
        shell_start racecheck 130 sanitised racecheck
        collect
    fi
    # What one of eight expert ranks computes of a layer with all 256 experts.
    shell_piece bench_expert_ranks 90 bench_layer "$logs/expert-ranks.json" --decode 128 --context 1024 --prefill 0 \
        --repetitions 5 --expert-ranks 8
fi
finish
