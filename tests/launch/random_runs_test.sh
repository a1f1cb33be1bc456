#!/usr/bin/env bash
# random_runs_test.sh FERRY SOURCE_DIR [SEED [SECONDS]]: models, requests, numerics, layouts and settings at random, runs stopped
# and killed at random moments and resumed on other layouts: all write the bytes of one rank (DESIGN 4.1, 4.6).
set -uo pipefail
ferry=$1
source=$2
seed=${3:-1}
seconds=${4:-45}
RANDOM=$seed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 num_runs=0 num_stopped=0

one_of() { echo "${@:RANDOM % $# + 1:1}"; }
percent() { [ $((RANDOM % 100)) -lt "$1" ]; }

requests() { # on standard output
    local i length prompt
    for ((i = 0; i < $1; ++i)); do
        length=$(one_of 1 5 20 64 70 100)
        prompt=$(seq -s, 3 $((length % 25 + 3)))
        percent 50 || prompt=$(for ((k = 0; k < length; ++k)); do printf '%d,' $((k * 7 % 29 + 3)); done)$((RANDOM % 27 + 3))
        printf '{"id":%d,"prompt_tokens":[%s],"max_tokens":%d,"ignore_eos":%s' "$i" "$prompt" "$(one_of 1 3 17 40)" "$(one_of true false)"
        percent 50 && printf ',"temperature":%s,"seed":%d,"top_p":%s' "$(one_of 0.5 1)" "$RANDOM" "$(one_of 0.9 1)"
        percent 20 && printf ',"repetition_penalty":%s' "$(one_of 0.9 1.2)"
        percent 30 && printf ',"logprobs":%d' "$(one_of 0 3)"
        percent 15 && printf ',"n":2'
        printf '}\n'
        percent 5 && echo "a bad line"
    done
}

draw_numerics() {
    numerics=(engine.max_context=256 numerics.tp_slices=4 "exchange.dtype=$(one_of f32 bf16 fp8)"
        "numerics.cache_dtype=$(one_of f32 bf16)" "numerics.bf16_activations=$(one_of auto true false amx)")
    case $model in *int4) numerics+=("numerics.int8_activations=$(one_of true false)") ;; esac
}

draw_layout() { # ranks, settings
    local attention batch drafter=prompt_lookup
    case $model in *v3 | *v32 | *glm | *demo) drafter=$(one_of prompt_lookup mtp mtp) ;; esac # those with a module
    ranks=$(one_of 1 2 3 4 5)
    attention=$ranks
    settings=()
    if [ "$ranks" -gt 1 ] && percent 70; then
        attention=$((RANDOM % (ranks - 1) + 1))
        settings+=(layout.mode=disaggregated "layout.attention_ranks=$attention" "layout.expert_ranks=$((ranks - attention))")
    fi
    settings+=("layout.tp_size=$([ $((attention % 2)) -eq 0 ] && one_of 1 2 || echo 1)")
    batch=$(one_of 1 2 5 16)
    settings+=("engine.micro_batches=$(one_of 1 2 3 4)" "exchange.mode=$(one_of auto bounded sized)" "exchange.progress_thread=$(one_of true false)"
        "engine.max_batch=$batch" "engine.max_batch_tokens=$(one_of 16 64 300)" "engine.max_prefill_chunk=$(one_of 1 5 64 512)"
        "engine.drafter=$drafter" "engine.prefix_cache=$(one_of true false)" "engine.prefill_gib=$(one_of 0 0.0001 0.01)" "engine.cache_pages=$(one_of 4 5 8 40)"
        "engine.draft_tokens=$(one_of 0 1 3 16)" "engine.draft_acceptance=$(one_of 0 0.4)" "engine.threads=$(one_of 1 2)" "output.sync_interval_s=$(one_of 0 1)")
}

generate() { # RANKS OUT SETTING...: becomes the process to wait for
    local ranks=$1 out=$2 set=() setting
    shift 2
    for setting in "$@"; do set+=(--set "$setting"); done
    exec setsid "$source/tests/support/mpirun.sh" "$ranks" "$ferry" generate --model "$model" --input "$work/input.jsonl" --output "$work/$out" \
        --set output.timings=false --set log.progress=off --set engine.stall_timeout_s=60 "${set[@]}"
}

# One start on a layout drawn anew, stopped on its way one time in three. False: it failed on its own.
start() {
    local job code stop=none
    draw_layout
    echo "$ranks ranks, ${settings[*]}" >>"$work/trail"
    (generate "$ranks" out "${numerics[@]}" "${settings[@]}") >"$work/log" 2>&1 &
    job=$!
    num_runs=$((num_runs + 1))
    if percent 33; then
        stop=$(one_of TERM KILL)
        num_stopped=$((num_stopped + 1))
        sleep "0.$((RANDOM % 9))"
        echo "$stop" >>"$work/trail"
        kill -s "$stop" -- -"$job" 2>/dev/null
    fi
    wait "$job" 2>/dev/null
    code=$?
    # Ranks of a job that was killed may write for a moment yet.
    [ $code -eq 0 ] || [ "$stop" != none ] || { [ $code -eq 2 ] && grep -q "another run" "$work/log"; }
}

"$ferry" convert "$source/configs/demo" "$work/demo" --expert-shards 3 2>/dev/null || exit 1
for ((round = 0; SECONDS < seconds; ++round)); do
    model=$(one_of v2 v2-lite v3 v32 v32 v3-bf16 v3-fp8 k2 k2-int4 tied fused glm glm5 glm52 demo demo)
    [ "$model" = demo ] && model=$work/demo || model=$source/tests/golden/data/models/$model
    requests "$(one_of 1 3 8 16)" >"$work/input.jsonl"
    draw_numerics
    rm -rf "$work/one"
    (generate 1 one "${numerics[@]}" engine.threads=1 engine.max_batch=1 engine.prefix_cache=false) >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    for ((k = 0; k < 3; ++k)); do
        rm -rf "$work/out"
        echo "seed $seed, round $round: $model ${numerics[*]}" >"$work/trail"
        for ((try = 0; try < 20; ++try)); do
            start || break
            [ ! -e "$work/out/completions.jsonl" ] || break
        done
        cmp "$work/one/completions.jsonl" "$work/out/completions.jsonl" && continue
        failed=$((failed + 1))
        echo "FAILED: $(cat "$work/trail" "$work/log")"
    done
done
echo "$round rounds, $num_runs starts, $num_stopped stopped on their way, $failed failed"
[ "$failed" -eq 0 ] && [ "$num_runs" -gt 0 ]
