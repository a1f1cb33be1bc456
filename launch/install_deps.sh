#!/usr/bin/env bash
# install_deps.sh [--tests]: installs with apt what Ferry needs and this machine lacks (Debian 12 or newer, Ubuntu 24.04).
# Does nothing, and needs no root, when all is there. CUDA and NCCL are used when present and never installed.
set -euo pipefail

build=(g++ cmake ninja-build pkg-config
    libopenmpi-dev openmpi-bin libucx-dev
    libhdf5-dev libyaml-cpp-dev libhwy-dev libfmt-dev libspdlog-dev libcli11-dev nlohmann-json3-dev
    libonig-dev libxxhash-dev libutf8proc-dev)
tests=(libgtest-dev libgmock-dev libbenchmark-dev libopenblas-dev hdf5-tools python3-h5py
    clang clang-format libclang-rt-14-dev iproute2 patchelf chromium
    munge slurm-wlm slurm-wlm-basic-plugins slurmctld slurmd slurm-client)

wanted=("${build[@]}")
[ "${1:-}" = "--tests" ] && wanted+=("${tests[@]}")

missing=()
for package in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) == *'ok installed' ]] || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "install_deps.sh: this is not a Debian-like system; install: ${missing[*]}" >&2
    exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "install_deps.sh: run as root: apt-get install ${missing[*]}" >&2; exit 1; }
    sudo=(sudo)
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get -o DPkg::Lock::Timeout=600 -qq update
# Tools of the tests that a release does not carry are left out; the tests that need them say so.
available=()
for package in "${missing[@]}"; do
    if apt-cache show "$package" >/dev/null 2>&1; then
        available+=("$package")
    else
        echo "not in this release: $package"
    fi
done
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq install -y \
    --no-install-recommends "${available[@]}" >/dev/null
