#!/usr/bin/env bash
# convert_test.sh FERRY SOURCE_DIR: conversion on several ranks gives the files of one rank, also after some ranks were
# killed, and fails as one.
set -uo pipefail
ferry=$1
source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $*"
    cat "$work/log"
    exit 1
}
mpirun() { "$source/tests/support/mpirun.sh" "$@" >"$work/log" 2>&1; }

"$ferry" convert "$source/configs/demo" "$work/one" --expert-shards 5 >"$work/log" 2>&1 || fail "one rank"
for ranks in 2 3 7; do
    mpirun "$ranks" "$ferry" convert "$source/configs/demo" "$work/$ranks" --expert-shards 5 || fail "$ranks ranks"
    diff -r "$work/one" "$work/$ranks" || fail "$ranks ranks differ from one"
done

# Two shards are there, one of them under a name that says that it is not whole; the ranks do the rest.
mkdir "$work/resumed"
cp "$work/one/experts-00001-of-00005.h5" "$work/one/dense-00000-of-00001.h5" "$work/resumed"
head -c 1000000 "$work/one/experts-00002-of-00005.h5" >"$work/resumed/experts-00002-of-00005.h5.partial"
mpirun 3 "$ferry" convert "$source/configs/demo" "$work/resumed" --expert-shards 5 || fail "resumed"
grep -q "2 shards were there already" "$work/log" || fail "resumed from nothing"
diff -r "$work/one" "$work/resumed" || fail "resumed differs"

# What is left out is told by one rank.
cp -r "$source/configs/demo" "$work/no_tokenizer"
rm "$work/no_tokenizer/tokenizer.json"
mpirun 3 "$ferry" convert "$work/no_tokenizer" "$work/tokens_only" || fail "no tokenizer"
[ "$(grep -c "has no tokenizer.json" "$work/log")" -eq 1 ] || fail "warnings of several ranks"
sed -i 's/"rope_scaling"/"rope_scalin"/' "$work/no_tokenizer/config.json"
echo '{"prompt_tokens": [5], "max_tokens": 1}' >"$work/in.jsonl"
mpirun 2 "$ferry" generate --model "$work/no_tokenizer" --input "$work/in.jsonl" --set output.dir="$work/results" \
    --set engine.threads=1 || fail "generate"
[ "$(grep -c "did you mean rope_scaling" "$work/log")" -eq 1 ] || fail "warnings of generate on several ranks"

# A broken input ends all ranks with the code of a checkpoint error.
cp -r "$source/configs/demo" "$work/hf"
truncate -s 1000000 "$work/hf/model-00002-of-00003.safetensors"
mpirun 3 "$ferry" convert "$work/hf" "$work/broken"
[ $? -eq 3 ] || fail "exit code of a broken input"
grep -q "rank 0 .*model-00002-of-00003.safetensors.*truncated" "$work/log" || fail "message of a broken input"
[ ! -e "$work/broken/model.h5" ] || fail "a broken input left a checkpoint"

# One conversion at a time.
mkdir "$work/locked"
flock "$work/locked" "$ferry" convert "$source/configs/demo" "$work/locked" >"$work/log" 2>&1
[ $? -eq 3 ] || fail "exit code of a folder that another process writes"
grep -q "another process is writing" "$work/log" || fail "message of a folder that another process writes"
echo passed
