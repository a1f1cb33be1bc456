#!/usr/bin/env bash
# bundle.sh [--build DIR] [--output DIR] [--gpu-tests] [PROGRAM...]: a relocatable folder that runs on a machine of the same
# architecture with a glibc as new as here and nothing else installed: the executable ferry, further programs of the build
# (their paths; --gpu-tests: what tests/gpu/run.sh wants), the shared libraries that they need, and an Open MPI launcher
# with its plugins.
#
#   DIR/bin/        ferry, mpirun and the further programs: small scripts that tell Open MPI where it stands
#   DIR/libexec/    the programs themselves; they find DIR/lib by $ORIGIN
#   DIR/lib/        shared libraries, Open MPI's and UCX's plugins; no CUDA, NCCL or driver libraries
#   DIR/share, etc  what Open MPI reads
#
# On a machine with a GPU the CUDA libraries are that machine's own: bin/ looks in the usual folders, and LD_LIBRARY_PATH
# adds others. Ranks on several hosts need the cluster's own MPI; the launcher here starts ranks on its own host.
set -euo pipefail

die() { echo "bundle.sh: $*" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
build=$here/build/release
output=$here/build/bundle
programs=()
gpu_tests=0
while [ $# -gt 0 ]; do
    case $1 in
        --build) build=${2:?"--build needs a folder"}; shift 2 ;;
        --output) output=${2:?"--output needs a folder"}; shift 2 ;;
        --gpu-tests) gpu_tests=1; shift ;;
        -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) die "unknown option $1 (see --help)" ;;
        *) programs+=("$1"); shift ;;
    esac
done
ferry=$build/launch/ferry
[ -x "$ferry" ] || die "$ferry is not there; build first: cmake --build --preset release --target ferry"
for tool in patchelf strip ldd; do
    command -v "$tool" >/dev/null || die "$tool is not installed (Debian: patchelf binutils)"
done
if [ "$gpu_tests" = 1 ]; then
    for program in "$build/tests/gpu_tests" "$build/tests/bench/cuda_kernels_bench"; do
        [ -x "$program" ] || die "$program is not there; build first: cmake --build --preset release --target $(basename "$program")"
        programs+=("$program")
    done
fi
for program in ${programs[@]+"${programs[@]}"}; do [ -x "$program" ] || die "$program is not an executable"; done

case ${output%/} in "" | / | "$HOME" | "$here") die "--output $output: would be emptied first" ;; esac
[ ! -e "$output" ] || [ -e "$output/.ferry-bundle" ] || die "--output $output: exists and is no bundle"
rm -rf "$output"
mkdir -p "$output"/{bin,libexec,lib,share,etc}
output=$(cd "$output" && pwd)
touch "$output/.ferry-bundle"

# Of the machine that runs it: libc with its parts, the kernel's page, CUDA, the driver.
from_machine='^(linux-vdso|ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libutil|libnsl|libcuda|libcudart|libcublas|libcublasLt|libnccl|libnvidia.*|libnvrtc.*|libcufile)\.so'

add_libraries() { # of an ELF file, all that it needs
    local name path
    ldd "$1" | awk '$2 == "=>" { print $1, $3 }' | while read -r name path; do
        [[ $name =~ $from_machine ]] && continue
        [ "$path" != not ] || die "$1 needs $name, which this machine lacks"
        [ -e "$output/lib/$name" ] || cp -L "$path" "$output/lib/$name"
    done
}

add_plugins() { # TARGET_FOLDER FILE...
    local target=$output/$1 file
    shift
    mkdir -p "$target"
    for file; do
        cp -L "$file" "$target/"
        add_libraries "$file"
    done
}

add_program() { # NAME FILE
    cp -L "$2" "$output/libexec/$1"
    add_libraries "$2"
    cp "$output/share/run.sh" "$output/bin/$1"
}

# One script under the name of every program. Shell built-ins only: a bare machine may have no more than a shell.
cat >"$output/share/run.sh" <<'RUN'
#!/bin/sh
# Runs ../libexec/ of the same name with this folder's libraries and, unless one is set, its Open MPI.
case $0 in */*) bin=${0%/*} ;; *) bin=$(command -v -- "$0") && bin=${bin%/*} ;; esac
root=$(cd -P -- "$bin/.." && pwd -P)
if [ -z "$OPAL_PREFIX" ] && [ -d "$root/lib/openmpi" ]; then
    export OPAL_PREFIX="$root" OPAL_BINDIR="$root/libexec" OPAL_LIBDIR="$root/lib" OPAL_PKGLIBDIR="$root/lib/openmpi"
    export OPAL_DATADIR="$root/share" OPAL_PKGDATADIR="$root/share/openmpi" OPAL_SYSCONFDIR="$root/etc"
    export PMIX_PREFIX="$root" PMIX_INSTALL_PREFIX="$root" PMIX_PKGLIBDIR="$root/lib/pmix"
    export PMIX_MCA_mca_base_component_path="$root/lib/pmix"
    export UCX_MODULE_DIR="$root/lib/ucx"
    # Open MPI insists on an agent for other hosts also where there are none.
    command -v ssh >/dev/null || command -v rsh >/dev/null || export OMPI_MCA_plm="${OMPI_MCA_plm:-isolated}"
fi
exec "$root/libexec/${0##*/}" "$@"
RUN
chmod +x "$output/share/run.sh"

add_program ferry "$ferry"
for program in ${programs[@]+"${programs[@]}"}; do add_program "$(basename "$program")" "$program"; done

needs=$(ldd "$ferry")
if [[ $needs == *libmpi.so* ]]; then
    mpi_setting() { ompi_info --path "$1" --parsable | cut -d: -f3; }
    add_program mpirun "$(command -v orterun)"
    add_program orted "$(command -v orted)"
    # Plugins of networks, file systems and OpenSHMEM that need hardware or that Ferry does not use stay behind.
    unused='mca_(btl_(ofi|openib|uct|usnic)|mtl|pml_(cm|monitoring)|.*_monitoring|vprotocol|crs|compress|io|fs|fbtl|fcoll|sharedfp|scoll|spml|memheap|sshmem|atomic|coll_(adapt|han)|pmix_flux|schizo_(flux|jsm)|filem)[_.]'
    mapfile -t plugins < <(find "$(mpi_setting pkglibdir)/" -name 'mca_*.so' | grep -vE "$unused" | sort)
    [ "${#plugins[@]}" -gt 0 ] || die "Open MPI's plugins were not found"
    add_plugins lib/openmpi "${plugins[@]}"
    cp -rL "$(mpi_setting pkgdatadir)" "$output/share/openmpi"
    cp -L "$(mpi_setting sysconfdir)"/openmpi-mca-params.conf "$output/etc/"
    pmix=$(ldd "$(mpi_setting pkglibdir)"/mca_pmix_ext*.so 2>/dev/null | awk '$1 ~ /^libpmix/ && !seen++ { print $3 }')
    if [ -n "$pmix" ]; then
        mkdir -p "$output/lib/pmix"
        folder=$(dirname "$(readlink -f "$pmix")")/pmix
        [ ! -d "$folder" ] || add_plugins lib/pmix "$folder"/*.so
    fi
fi
ucs=$(awk '$1 ~ /^libucs\./ { print $3 }' <<<"$needs")
if [ -n "$ucs" ] && [ -d "$(dirname "$(readlink -f "$ucs")")/ucx" ]; then
    add_plugins lib/ucx "$(dirname "$(readlink -f "$ucs")")"/ucx/libuct_cma.so.0
fi

# DT_RPATH and not DT_RUNPATH: it also serves the libraries' own needs and plugins, whatever LD_LIBRARY_PATH says.
cuda='/usr/local/cuda/lib64:/usr/local/nvidia/lib64'
find "$output/lib" "$output/libexec" -type f | while read -r file; do
    chmod u+w "$file"
    strip --strip-unneeded "$file" 2>/dev/null || true
    case $file in
        */lib/*/*) patchelf --force-rpath --set-rpath '$ORIGIN/..' "$file" ;;
        */lib/*) patchelf --force-rpath --set-rpath '$ORIGIN' "$file" ;;
        *) patchelf --force-rpath --set-rpath "\$ORIGIN/../lib:$cuda" "$file" ;;
    esac
done

size_mib=$(du -sm --apparent-size "$output" | cut -f1)
printf '%s: %d MiB, %d programs, %d libraries\n' "$output" "$size_mib" "$(find "$output/libexec" -type f | wc -l)" \
    "$(find "$output/lib" -name '*.so*' -type f | wc -l)"
[ "$size_mib" -lt 64 ] || die "larger than 64 MiB"
