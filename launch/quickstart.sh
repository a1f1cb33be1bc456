#!/usr/bin/env bash
# quickstart.sh: from a fresh clone to generated text: installs what is missing, builds, converts the small trained model
# in configs/demo, and lets two attention ranks and two expert ranks continue a few prompts. All it makes is under build/.
set -euo pipefail
if [ $# -gt 0 ]; then # it takes no arguments
    sed -n '2,3s/^# //p' "$0"
    case $1 in -h | --help) exit 0 ;; *) exit 2 ;; esac
fi
cd "$(dirname "$0")/.."
started=$SECONDS

launch/install_deps.sh
cmake --preset release -B build/quickstart -DFERRY_TESTS=OFF -DFERRY_BENCHMARKS=OFF >/dev/null
cmake --build build/quickstart -j "${FERRY_JOBS:-$(nproc)}"
ferry=build/quickstart/launch/ferry
"$ferry" --version

work=build/demo
rm -rf "$work"
"$ferry" convert configs/demo "$work/checkpoint" --expert-shards 2

# Several ranks on few cores: let idle ones yield, pin nobody.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
mpirun --oversubscribe -n 4 "$ferry" generate configs/demo.yaml --set engine.threads=1 --set engine.micro_batches=2 \
    --set layout.mode=disaggregated --set layout.attention_ranks=2 --set layout.expert_ranks=2

printf '\nText from 2 attention and 2 expert ranks, %d s after the start. Talk to it on one rank:\n  %s generate --model %s --interactive\n' \
    $((SECONDS - started)) "$ferry" "$work/checkpoint"
