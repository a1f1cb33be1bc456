#!/usr/bin/env bash
# What the assembler says about kernels: registers, shared memory, stack and spills of each, per
# architecture. Fails when one spills registers to memory.
#   ptxas_report.sh NVCC "FLAGS" SOURCE.cu...
set -euo pipefail
nvcc=$1 flags=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail=0
printf '%-10s %4s %7s %6s %6s  %s\n' arch regs smem stack spill kernel
for source in "$@"; do
    # shellcheck disable=SC2086
    "$nvcc" $flags -Xptxas -v -c "$source" -o "$work/object.o" 2>"$work/log" || { cat "$work/log"; exit 1; }
    awk '
        /Compiling entry function/ { split($0, part, "\047"); name = part[2]; arch = part[4] }
        /bytes stack frame/ { stack = $1; spill = $5 + $9 }
        /Used [0-9]+ registers/ {
            smem = 0
            for (i = 1; i <= NF; ++i) {
                if ($i == "registers,") regs = $(i - 1)
                if ($i ~ /^smem/) smem = $(i - 2)
            }
            print arch, regs, smem, stack, spill, name
        }' "$work/log" | c++filt | while read -r arch regs smem stack spill name; do
        name=${name#void } name=${name//ferry::(anonymous namespace)::/} name=${name%%(*}
        printf '%-10s %4s %7s %6s %6s  %s\n' "$arch" "$regs" "$smem" "$stack" "$spill" "$name"
        [ "$spill" -eq 0 ] || echo x >>"$work/spilled"
    done
done
if [ -e "$work/spilled" ]; then
    echo "$(wc -l <"$work/spilled") kernels spill registers to memory"
    fail=1
fi
exit "$fail"
