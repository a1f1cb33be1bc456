#!/usr/bin/env bash
# A kernel that spills registers is refused by the options that the sources are compiled with, on every architecture;
# one that needs few is not; and those sources are compiled with them.
#   spills_test.sh NVCC "FLAGS" COMPILE_COMMANDS SOURCE...
set -euo pipefail
nvcc=$1 flags=$2 commands=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/kernel.cu" <<'CU'
// N values that all live at once, in at most 32 registers of a thread.
__global__ void __launch_bounds__(1024, 2) reverse(const float* in, float* out) {
    float v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = in[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) out[i * 1024 + threadIdx.x] = v[N - 1 - i] * v[i * 7 % N];
}
CU
compile() { # N ARCHITECTURE...
    local n=$1 code=() architecture
    shift
    for architecture in "$@"; do code+=("-gencode=arch=compute_$architecture,code=sm_$architecture"); done
    # shellcheck disable=SC2086
    "$nvcc" $flags "${code[@]}" -DN="$n" -c "$work/kernel.cu" -o "$work/kernel.o" 2>"$work/log"
}
compile 4 80 90a || { cat "$work/log"; echo "FAILED: a small kernel does not compile"; exit 1; }
for architecture in 80 90a; do
    if compile 64 "$architecture"; then
        echo "FAILED: sm_$architecture: a kernel that spills compiles"
        exit 1
    fi
    grep -q 'Registers are spilled' "$work/log" || { cat "$work/log"; echo "FAILED: sm_$architecture: another error"; exit 1; }
done
for source in "$@"; do
    # The command of this file, as compile_commands.json has it: one line.
    command=$(grep -F '"command": ' "$commands" | grep -E -- "-c [^ ]*/?$source\b" | grep nvcc || true)
    [[ $command == *warn-on-spills* ]] || { echo "FAILED: $source is compiled without --warn-on-spills: $command"; exit 1; }
done
echo "kernels that spill are refused; $# sources are compiled so"
