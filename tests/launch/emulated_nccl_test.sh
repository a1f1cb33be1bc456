#!/usr/bin/env bash
# emulated_nccl_test.sh FERRY_EMULATED FERRY SOURCE_DIR: the whole executable on several ranks with an emulated GPU each
# (tests/support/cuda_emulation) and NCCL's stand-in between them (tests/support/nccl_emulation, by LD_LIBRARY_PATH):
# the CPU's tokens on every layout, in either mode of the exchange, with decode steps repeated as graphs and without.
set -euo pipefail
emulated=$1
ferry=$2
source=$3
work=$(mktemp -d "${TMPDIR:-/tmp}/ferry-nccl.XXXXXX")
trap 'rm -rf "$work"' EXIT
fail() { echo "emulated_nccl_test: $*" >&2; exit 1; }

"$ferry" convert "$source/tests/golden/data/models/v32" "$work/checkpoint" >/dev/null 2>&1
# Most come to choose their keys after some steps, one in its prompt.
for i in 1 2 3 4 5; do echo "{\"id\": $i, \"prompt_tokens\": [3, 14, $((15 + i)), 92, 65]}"; done >"$work/input.jsonl"
echo "{\"id\": 6, \"prompt_tokens\": [$(seq -s, 3 23)]}" >>"$work/input.jsonl"
settings=(--model "$work/checkpoint" --input "$work/input.jsonl" --set sampling.temperature=0
    --set sampling.max_tokens=15 --set sampling.ignore_eos=true --set engine.cache_pages=8 --set engine.max_context=128
    --set engine.threads=1 --set engine.max_batch_tokens=16 --set engine.max_batch=4 --set log.progress=off)
tokens() { sed 's/.*"tokens": *\(\[[^]]*\]\).*/\1/' "$work/$1/completions.jsonl"; }
run() { # RANKS NAME ARGUMENT...
    local ranks=$1 name=$2
    shift 2
    "$source/tests/support/mpirun.sh" "$ranks" "$emulated" generate "${settings[@]}" --set engine.device=cuda \
        --set exchange.dtype=f32 --output "$work/$name" "$@" >"$work/$name.log" 2>&1 || fail "$name: $(cat "$work/$name.log")"
    [ "$(tokens cpu)" = "$(tokens "$name")" ] || fail "$name wrote $(tokens "$name"), the CPU $(tokens cpu)"
}
says() { # NAME PATTERN
    grep -qE "$2" "$work/$1.log" || fail "$1 does not say '$2': $(cat "$work/$1.log")"
}
whole='engine.cuda_graphs: [1-9][0-9]* decode steps were launched as a whole'

"$ferry" generate "${settings[@]}" --output "$work/cpu" >"$work/cpu.log" 2>&1 || fail "$(cat "$work/cpu.log")"
run 3 apart --set layout.mode=disaggregated --set layout.attention_ranks=2 --set layout.expert_ranks=1 --set layout.tp_size=1 \
    --set engine.micro_batches=2
says apart 'exchange.transport: nccl .*every rank has a GPU of its own'
says apart 'CUDA graphs \(estimated\) .* NCCL \(estimated\) .* = '
says apart "$whole"
run 2 alone --set layout.mode=disaggregated --set layout.attention_ranks=1 --set layout.expert_ranks=1
says alone "$whole"
run 2 colocated --set layout.mode=colocated --set layout.tp_size=1 --set exchange.transport=nccl
says colocated "$whole"
run 2 group --set layout.mode=colocated
says group 'tensor-parallel groups of 2'
says group 'tensor-parallel rows .* = '
says group "$whole"
run 2 launched --set layout.mode=colocated --set engine.cuda_graphs=false
# The model's own module drafts, its exchange among the others.
mtp=(--set engine.draft_tokens=2 --set engine.drafter=mtp --set engine.draft_acceptance=0)
run 2 drafted "${mtp[@]}" --set layout.mode=colocated
run 3 drafted_apart "${mtp[@]}" --set layout.mode=disaggregated --set layout.attention_ranks=2 --set layout.expert_ranks=1 \
    --set layout.tp_size=1 --set engine.micro_batches=2
says drafted 'engine.draft_tokens: [1-9][0-9]* drafts were computed'
says drafted 'steps are launched kernel by kernel, as drafts of several ranks are'
run 3 sized --set layout.mode=disaggregated --set layout.attention_ranks=1 --set layout.expert_ranks=2 \
    --set exchange.mode=sized "${mtp[@]}" --set engine.micro_batches=2
for name in launched drafted drafted_apart sized; do
    if grep -q 'launched as a whole' "$work/$name.log"; then fail "$name repeated steps: $(cat "$work/$name.log")"; fi
done
echo "emulated_nccl_test: ok, every layout wrote the CPU's tokens"
