#!/usr/bin/env bash
# quickstart.sh: from a fresh clone to generated text: installs what is missing, builds, converts the small trained model
# in configs/demo and continues a few prompts. Everything it makes is under build/.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS

launch/install_deps.sh
cmake --preset release -DFERRY_TESTS=OFF -DFERRY_BENCHMARKS=OFF -B build/quickstart >/dev/null
cmake --build build/quickstart -j "${FERRY_JOBS:-$(nproc)}"
ferry=build/quickstart/launch/ferry
"$ferry" --version

work=build/quickstart/demo
rm -rf "$work"
"$ferry" convert configs/demo "$work/checkpoint" --expert-shards 2
"$ferry" generate configs/demo.yaml --set model.path="$work/checkpoint" --set output.dir="$work/output"

echo
"$ferry" generate --model "$work/checkpoint" --output "$work/prompt" \
    --prompt "It is a truth universally acknowledged, that"
printf '\nDone in %d s. Talk to it: %s generate --model %s --interactive\n' $((SECONDS - started)) "$ferry" "$work/checkpoint"
