#!/usr/bin/env bash
# bundle_test.sh BUILD_DIR SOURCE_DIR: makes a bundle and runs it where nothing is installed: a root that holds a shell,
# libc and the bundle. One rank and, where there is MPI, three ranks of the bundled launcher continue a prompt with the same tokens.
set -euo pipefail
build=$1
source=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/ferry-bundle.XXXXXX")
trap 'rm -rf "$work"' EXIT
fail() { echo "bundle_test: $*" >&2; exit 1; }

if ! command -v patchelf >/dev/null; then
    echo "bundle_test: skipped, patchelf is not installed"
    exit 77
fi
if ! unshare --mount --map-root-user true 2>/dev/null; then
    echo "bundle_test: skipped, this user may not make a mount namespace"
    exit 77
fi

"$source/launch/bundle.sh" --build "$build" --output "$work/made" >"$work/log" || fail "$(cat "$work/log")"
cat "$work/log"
found=$(find "$work/made" -name 'libcuda*' -o -name 'libcublas*' -o -name 'libnccl*' -o -name 'libnvidia*')
[ -z "$found" ] || fail "CUDA libraries in the bundle: $found"
# Every program and library looks in its own folder, nothing asks for a folder of this machine.
while read -r file; do
    rpath=$(patchelf --print-rpath "$file")
    [[ $rpath == '$ORIGIN'* ]] || fail "$file has rpath '$rpath'"
done < <(find "$work/made/libexec" "$work/made/lib" -type f -name '*')
"$source/launch/bundle.sh" --build "$build" --output "$work" 2>"$work/refused" && fail "a foreign folder was emptied"
grep -q 'is no bundle' "$work/refused" || fail "$(cat "$work/refused")"

root=$work/root
mkdir -p "$root"/{bin,proc,sys,dev,tmp,etc,model}
cp -L /bin/sh "$root/bin/sh"
add_here() { mkdir -p "$root$(dirname "$1")" && cp -L "$1" "$root$1"; }
add_here "$(patchelf --print-interpreter /bin/sh)"
for name in libc.so.6 libm.so.6 libpthread.so.0 libdl.so.2 librt.so.1 libresolv.so.2 libutil.so.1; do
    path=$(ldconfig -p | awk -v n="$name" '$1 == n && !seen++ { print $NF }')
    [ -z "$path" ] || add_here "$path"
done
cp "$source"/configs/demo/*.json "$source"/configs/demo/*.safetensors "$root/model/"
echo 'root:x:0:0::/tmp:/bin/sh' >"$root/etc/passwd"
mv "$work/made" "$root/elsewhere" # not where it was made

cat >"$root/run.sh" <<'RUN'
set -e
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
b=/elsewhere/bin
$b/ferry --version
$b/ferry convert /model /tmp/checkpoint
generate="ferry generate --model /tmp/checkpoint --prompt Emma --set sampling.max_tokens=12 --set engine.threads=1"
generate="$generate --set engine.cache_pages=8 --set log.progress=off"
cd $b # also when called by a bare name
./$generate --output /tmp/one
[ ! -e mpirun ] || PATH=$b mpirun -n 3 --oversubscribe $generate --set layout.mode=colocated --output /tmp/three
RUN
unshare --mount --map-root-user sh -c "mount --rbind /proc '$root/proc' && mount --rbind /dev '$root/dev' &&
    mount --rbind /sys '$root/sys' &&
    exec timeout -k 5 150 env -i PATH=/nowhere TMPDIR=/tmp HOME=/tmp '$(command -v chroot)' '$root' /bin/sh /run.sh" \
    >"$work/out" 2>&1 || fail "$(cat "$work/out")"
jobs=(one)
[[ $("$build/launch/ferry" --version) =~ MPI\ +not\ built\ in ]] || jobs+=(three)
for ranks in "${jobs[@]}"; do
    [ "$(wc -l <"$root/tmp/$ranks/completions.jsonl")" = 1 ] || fail "no completion from $ranks: $(cat "$work/out")"
done
tokens() { sed 's/.*"tokens": *\(\[[^]]*\]\).*/\1/' "$root/tmp/$1/completions.jsonl"; }
for ranks in "${jobs[@]}"; do
    [ "$(tokens one)" = "$(tokens "$ranks")" ] || fail "one rank: $(tokens one), $ranks: $(tokens "$ranks")"
done
[ "$(tokens one | tr ',' '\n' | wc -l)" = 12 ] || fail "not 12 tokens: $(tokens one)"
echo "bundle_test: ok, ${jobs[*]} wrote $(tokens one)"
