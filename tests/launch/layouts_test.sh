#!/usr/bin/env bash
# layouts_test.sh FERRY SOURCE_DIR TRACE_CHECK: every layout writes, byte for byte, the completions file of one rank (DESIGN 4.1).
# FERRY_TEST_TRANSPORT names the transport (default: auto).
set -uo pipefail
ferry=$1
source=$2
trace_check=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$ferry" convert "$source/configs/demo" "$work/demo" --expert-shards 3 2>/dev/null || exit 1

cat >"$work/input.jsonl" <<'JSONL'
{"id":"greedy","prompt":"It is a truth universally acknowledged, that","max_tokens":30}
{"id":"sampled","prompt":"The evening was","temperature":0.7,"top_p":0.95,"seed":3,"max_tokens":45}
this line is bad
{"id":"logprobs","prompt":"Emma was","logprobs":2,"max_tokens":12}
{"id":"chat","messages":[{"role":"user","content":"Tell me about Mr. Darcy."}],"temperature":0.8,"seed":9,"max_tokens":40}
{"id":"two","prompt":"\"My dear Miss Woodhouse,\" said he,","n":2,"temperature":1,"max_tokens":17}
JSONL
model=$work/demo
common=(--input "$work/input.jsonl" --set output.timings=false --set engine.threads=1 --set log.progress=off)
[ -z "${FERRY_TEST_TRANSPORT:-}" ] || common+=(--set "exchange.transport=$FERRY_TEST_TRANSPORT")
failed=0 passed=0

check() { # RANKS NUMERICS LAYOUT-SETTINGS...: compares with one rank under the same numeric settings
    local ranks=$1 numerics=$2
    shift 2
    local settings=() setting
    for setting in "$@"; do settings+=(--set "$setting"); done
    local reference="$work/one-$(basename "$model")-${numerics//[^a-z0-9]/-}"
    local numeric=()
    [ -z "$model" ] || numeric=(--model "$model") # else a dummy, which the settings name
    [ "$numerics" = default ] || for setting in $numerics; do numeric+=(--set "$setting"); done
    if [ ! -f "$reference/completions.jsonl" ]; then
        "$ferry" generate "${common[@]}" "${numeric[@]}" --output "$reference" 2>"$work/log" ||
            { cat "$work/log"; exit 1; }
    fi
    rm -rf "$work/out"
    if "$source/tests/support/mpirun.sh" "$ranks" "$ferry" generate "${common[@]}" "${numeric[@]}" \
        "${settings[@]}" --output "$work/out" >"$work/log" 2>&1 &&
        cmp "$reference/completions.jsonl" "$work/out/completions.jsonl"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $model, $ranks ranks, $numerics, $*"
        tail -20 "$work/log"
    fi
}

d=layout.mode=disaggregated
layout() { echo "$d layout.attention_ranks=$1 layout.expert_ranks=$2 layout.tp_size=$3 engine.micro_batches=$4"; }
# shellcheck disable=SC2046
{
    check 2 default $(layout 1 1 1 1)
    check 2 default $(layout 1 1 1 2) engine.max_prefill_chunk=7
    check 4 default $(layout 1 3 1 3)
    check 4 default $(layout 3 1 1 2)
    check 5 default $(layout 3 2 1 4) engine.max_batch_tokens=64
    check 7 default $(layout 2 5 2 2) exchange.mode=sized
    check 6 default $(layout 2 4 2 2) exchange.mode=bounded
    check 6 default $(layout 4 2 2 1) engine.max_prefill_chunk=1
    check 5 default $(layout 4 1 4 2)
    check 2 default layout.tp_size=2 engine.micro_batches=2
    check 3 default engine.micro_batches=3 exchange.mode=sized
    check 4 default layout.tp_size=4 engine.prefix_cache=false
    check 7 default engine.micro_batches=2 engine.cache_pages=4 engine.max_context=256
    check 1 default engine.draft_tokens=3
    check 5 default $(layout 3 2 1 2) engine.draft_tokens=16 engine.max_batch_tokens=32
    check 5 default $(layout 2 3 2 2) engine.draft_tokens=3 engine.drafter=mtp engine.draft_acceptance=0 engine.max_batch_tokens=64
    # Prompts in pieces and too few pages: steps begin the next one's rows, or find that they cannot.
    check 4 default $(layout 2 2 2 2) engine.max_prefill_chunk=3 engine.max_batch_tokens=32
    check 3 default $(layout 1 2 1 3) engine.cache_pages=4 engine.max_context=256 engine.max_prefill_chunk=5
    check 3 exchange.dtype=bf16 $(layout 1 2 1 2)
    check 4 exchange.dtype=bf16 layout.tp_size=2 engine.micro_batches=2
    check 4 exchange.dtype=fp8 $(layout 2 2 2 2)
    check 3 exchange.dtype=fp8 engine.micro_batches=1
    check 4 numerics.cache_dtype=bf16 $(layout 2 2 1 2)
    check 4 default $(layout 2 2 1 2) engine.compress_weights=true
}

# Where experts are does not change bits: recorded load, balanced with copies of the busiest, and a file.
check 3 default $(layout 1 2 1 2) log.expert_load="$work/load.json" log.trace="$work/trace.json"
check 5 default $(layout 2 3 1 2) layout.placement=balanced layout.expert_load="$work/load.json" \
    layout.redundant_experts=4
check 3 exchange.dtype=bf16 layout.placement=balanced layout.expert_load="$work/load.json" layout.redundant_experts=1
experts=$(sed -n 's/.*"n_routed_experts": *\([0-9]*\).*/\1/p' "$source/configs/demo/config.json")
even=$(seq -s, 0 2 $((experts - 1))) odd=$(seq -s, 1 2 $((experts - 1)))
echo "{\"experts_of_rank\": [[${odd%,}], [${even%,}, 1]]}" >"$work/odd.json"
check 3 default $(layout 1 2 1 1) layout.placement="$work/odd.json"
require() { # WHAT CONDITION...
    local what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED: $what"
    fi
}
"$trace_check" "$work/trace.json" >"$work/log" || cat "$work/log"
require "the trace of three ranks keeps all rules" grep -qE "^3 ranks, [1-9][0-9]* spans, [1-9][0-9]* flows, [1-9][0-9]* counters, 0 problems" "$work/log"
require "expert load is recorded" grep -q '"first_layer"' "$work/load.json"

# Random models of each family: no tokenizer, so prompts are tokens. More attention ranks than requests.
cat >"$work/tokens.jsonl" <<'JSONL'
{"id":"a","prompt_tokens":[5,9,2,17,30,3,8,11,4,25,6,7],"max_tokens":9,"ignore_eos":true}
{"id":"b","prompt_tokens":[12],"max_tokens":21,"temperature":1,"seed":4,"ignore_eos":true,"logprobs":1}
JSONL
common[1]=$work/tokens.jsonl
for family in v2 v2-lite v3 v3-bf16 v3-fp8 k2 k2-int4 tied fused glm v32 glm5 glm52; do
    model=$source/tests/golden/data/models/$family
    check 4 default $(layout 3 1 1 2) engine.max_prefill_chunk=5
    check 3 default $(layout 1 2 1 1) exchange.mode=sized
done
# The module for multi-token prediction drafts: one exchange more for each draft, of all ranks or of none.
mtp="engine.draft_tokens=2 engine.drafter=mtp engine.draft_acceptance=0"
model=$source/tests/golden/data/models/v3
# shellcheck disable=SC2046,SC2086
{
    check 1 default $mtp
    check 4 default $(layout 3 1 1 2) $mtp engine.max_prefill_chunk=5
    check 6 default $(layout 2 4 2 2) $mtp exchange.mode=bounded
    check 3 exchange.dtype=fp8 $mtp engine.micro_batches=3 exchange.mode=sized
    check 3 default $(layout 1 2 1 2) log.expert_load="$work/v3-load.json"
    check 4 default $(layout 1 3 1 2) $mtp layout.placement=balanced layout.expert_load="$work/v3-load.json" \
        layout.redundant_experts=2
    "$ferry" convert "$model" "$work/v3" --expert-shards 3 2>/dev/null || exit 1
    model=$work/v3
    check 5 default $(layout 2 3 2 2) $mtp engine.prefill_gib=0
    model=$source/tests/golden/data/models/glm
    check 4 default $(layout 2 2 1 2) $mtp
}
model=$source/tests/golden/data/models/v3-bf16
check 4 "numerics.bf16_activations=true exchange.dtype=bf16" $(layout 2 2 1 2)
check 3 numerics.bf16_activations=true engine.max_prefill_chunk=5
check 4 "numerics.bf16_activations=amx exchange.dtype=bf16" $(layout 2 2 1 2)
check 3 numerics.bf16_activations=amx engine.compress_weights=false engine.max_prefill_chunk=5
check 4 numerics.bf16_activations=true $(layout 2 2 1 2) engine.compress_weights=true
check 3 numerics.bf16_activations=false engine.compress_weights=true
check 3 default engine.compress_weights=true
check 4 default $(layout 2 2 1 2) engine.compress_weights=false
model=$source/tests/golden/data/models/v3-fp8
check 4 exchange.dtype=fp8 $(layout 2 2 1 2) exchange.mode=bounded
check 3 numerics.fp8_activations=true engine.micro_batches=2
check 4 numerics.bf16_activations=false $(layout 2 2 1 2)
model=$source/tests/golden/data/models/k2-int4
check 4 numerics.bf16_activations=false $(layout 2 2 1 2) engine.max_prefill_chunk=5
check 3 "numerics.bf16_activations=amx exchange.dtype=fp8" engine.micro_batches=2
check 4 numerics.int8_activations=true $(layout 2 2 1 2) engine.max_prefill_chunk=5
check 3 "numerics.int8_activations=true numerics.bf16_activations=false exchange.dtype=f32" $(layout 1 2 1 1)
# In all linear layers; slices of w2 are whole groups of 32.
model=
dummy="model.dummy=$source/tests/launch/int4_shape.yaml model.dtype=int4-all"
check 4 "$dummy numerics.int8_activations=true" $(layout 2 2 2 2) engine.max_prefill_chunk=5
check 3 "$dummy" $(layout 2 1 1 2)

# Exponents of 2 to 2^-120 in an expert: nobody asked for such weights to be compressed, so they are loaded as they are.
cp -r "$source/tests/golden/data/models/v3-bf16" "$work/wide"
model=$work/wide
tensor=model.layers.1.mlp.experts.10.up_proj.weight
shard=$(grep -l "$tensor" "$model"/*.safetensors)
header=$((0x$(head -c 8 "$shard" | od -An -tx8 | tr -d ' ')))
offset=$(tail -c +9 "$shard" | head -c "$header" |
    sed -n "s/.*\"$tensor\":{[^}]*\"data_offsets\":\[\([0-9]*\),.*/\1/p")
for ((i = 0; i < 12 * 64; ++i)); do
    bits=$((i * 37 % 120 + 8 << 7))
    printf "\\x$(printf %02x $((bits & 255)))\\x$(printf %02x $((bits >> 8)))"
done | dd of="$shard" bs=1 seek=$((8 + header + offset)) conv=notrunc status=none
check 4 numerics.bf16_activations=true $(layout 2 2 1 2) engine.compress_weights=false
check 4 numerics.bf16_activations=true $(layout 2 2 1 2)
if grep -qw avx512_bf16 /proc/cpuinfo; then
    require "that is said" [ "$(grep -c "all are loaded again" "$work/log")" -eq 1 ]
fi
"$ferry" bench layer --model "$model" --decode 1 --context 64 --prefill 0 --repetitions 1 >"$work/log" 2>&1
require "a benchmark loads them as they are, too" grep -q "^# compressed weights: no" "$work/log"
"$ferry" generate --model "$model" "${common[@]}" --set engine.compress_weights=true --output "$work/refused" 2>"$work/log"
require "weights that do not compress are refused where they must" [ $? -eq 3 ]
require "with what to do" grep -q "layers/1/ffn/experts/w3.*do not compress.*set engine.compress_weights: false" "$work/log"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
