#!/usr/bin/env bash
# Peak memory of `ferry convert` on a generated checkpoint: convert_memory.sh [BUILD_DIR] [GIB] [WORK_DIR]
set -euo pipefail
build=${1:-build/release}
gib=${2:-2}
work=$(mktemp -d "${3:-${TMPDIR:-/tmp}}/convert-memory-XXXXXX")
trap 'rm -rf "$work"' EXIT
command -v /usr/bin/time >/dev/null || { echo "needs /usr/bin/time (Debian: time)"; exit 1; }

"$build/tests/bench/checkpoint_bench" make "$work/hf" "$gib"
du -sh --apparent-size "$work/hf" | cut -f1 | sed 's/^/input: /'
for dtype in keep fp8 f32; do
    /usr/bin/time -f "$dtype: peak %M KiB, %e s wall, %U s user, %S s system" \
        "$build/launch/ferry" convert "$work/hf" "$work/out-$dtype" --dtype "$dtype" --expert-shards 4 >/dev/null 2>"$work/log" ||
        { cat "$work/log"; exit 1; }
    tail -1 "$work/log"
    [ "$dtype" = keep ] || rm -rf "$work/out-$dtype"
done
"$build/tests/bench/checkpoint_bench" load "$work/out-keep"
