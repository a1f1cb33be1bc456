#!/usr/bin/env bash
# emulated_gpu_test.sh FERRY_EMULATED FERRY SOURCE_DIR TRACE_CHECK: the whole executable on emulated GPUs (tests/support/
# cuda_emulation): engine.device: cuda writes the CPU's tokens on one rank and on several that share a GPU, names the
# memory that it lacks, and refuses what cannot work.
set -euo pipefail
emulated=$1
ferry=$2
source=$3
trace_check=$4
work=$(mktemp -d "${TMPDIR:-/tmp}/ferry-gpu.XXXXXX")
trap 'rm -rf "$work"' EXIT
fail() { echo "emulated_gpu_test: $*" >&2; exit 1; }

"$ferry" convert "$source/tests/golden/data/models/v2-lite" "$work/checkpoint" >/dev/null 2>&1
cat >"$work/input.jsonl" <<'JSONL'
{"id": 1, "prompt_tokens": [3, 14, 15, 92, 65]}
{"id": 2, "prompt_tokens": [35, 89, 79]}
JSONL
settings=(--model "$work/checkpoint" --input "$work/input.jsonl" --set sampling.temperature=0
    --set sampling.max_tokens=4 --set engine.cache_pages=8 --set engine.max_context=128 --set engine.threads=1
    --set engine.max_batch_tokens=16 --set engine.max_batch=4 --set log.progress=off)
gpu=(--set engine.device=cuda)
tokens() { sed 's/.*"tokens": *\(\[[^]]*\]\).*/\1/' "$work/$1/completions.jsonl"; }
same() { [ "$(tokens cpu)" = "$(tokens "$1")" ] || fail "$1 wrote $(tokens "$1"), the CPU $(tokens cpu): $(cat "$work/$1.log")"; }
on_ranks() { # RANKS NAME ARGUMENT...
    local ranks=$1 name=$2
    shift 2
    "$source/tests/support/mpirun.sh" "$ranks" "$emulated" generate "${settings[@]}" "${gpu[@]}" --output "$work/$name" \
        "$@"
}
expect() { # CODE NAME PATTERN COMMAND...
    local code=0 wanted=$1 name=$2 pattern=$3
    shift 3
    "$@" >"$work/$name.log" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || fail "$name: exit code $code, not $wanted: $(cat "$work/$name.log")"
    grep -qE "$pattern" "$work/$name.log" || fail "$name does not say '$pattern': $(cat "$work/$name.log")"
}

"$ferry" generate "${settings[@]}" --output "$work/cpu" >"$work/cpu.log" 2>&1 || fail "$(cat "$work/cpu.log")"
[ "$(tokens cpu | wc -l)" = 2 ] || fail "the CPU wrote $(tokens cpu)"

expect 0 one 'rank +host +device' "$emulated" generate "${settings[@]}" "${gpu[@]}" --set log.progress=on \
    --output "$work/one" --set log.trace="$work/trace.json"
same one
grep -q 'weights .* = .*GiB' "$work/one.log" || fail "no memory plan: $(cat "$work/one.log")"
grep -q 'GB of it to GPUs through pinned memory, .* GB/s a thread' "$work/one.log" || fail "no rate: $(cat "$work/one.log")"
grep -q 'exchange.transport: self' "$work/one.log" || fail "no transport: $(cat "$work/one.log")"
grep -q '"GPU stream"' "$work/trace.json" || fail "the trace has no track of the GPU's stream"
"$trace_check" "$work/trace.json" >"$work/trace.log" || fail "$(cat "$work/trace.log")"

if command -v mpirun >/dev/null && [[ $("$ferry" --version) =~ MPI\ .*Open\ MPI ]]; then
    on_ranks 3 three --set layout.mode=disaggregated --set layout.attention_ranks=1 --set layout.expert_ranks=2 \
        --set exchange.transport=mpi --set exchange.dtype=f32 >"$work/three.log" 2>&1 || fail "$(cat "$work/three.log")"
    same three
    on_ranks 2 tensor_parallel --set layout.mode=colocated --set layout.tp_size=2 --set engine.micro_batches=2 \
        --set exchange.dtype=f32 >"$work/tensor_parallel.log" 2>&1 || fail "$(cat "$work/tensor_parallel.log")"
    same tensor_parallel
    grep -qE 'ranks share a GPU|this build has no NCCL' "$work/tensor_parallel.log" || fail "no reason: $(cat "$work/tensor_parallel.log")"
    grep -q 'engine.cuda_graphs: steps are launched kernel by kernel, as ' "$work/tensor_parallel.log" ||
        fail "it does not say why steps are not repeated: $(cat "$work/tensor_parallel.log")"
    expect 2 shared 'nccl needs a GPU for each rank, but ranks 0 and 1' on_ranks 2 shared \
        --set layout.mode=colocated --set exchange.transport=nccl
fi

expect 0 launched '' "$emulated" generate "${settings[@]}" "${gpu[@]}" --set engine.cuda_graphs=false --output "$work/launched"
same launched
expect 6 memory 'needs weights .* latent cache .* = ' env CUDA_EMULATION_MEMORY_BYTES=100000000 \
    "$emulated" generate "${settings[@]}" "${gpu[@]}" --set engine.cache_pages=100000 --output "$work/memory"
expect 2 none 'no GPU' env CUDA_EMULATION_DEVICES=0 "$emulated" generate "${settings[@]}" "${gpu[@]}" --output "$work/none"
echo "emulated_gpu_test: ok, one, two and three ranks wrote the CPU's tokens"
