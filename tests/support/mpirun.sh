#!/usr/bin/env bash
# mpirun.sh RANKS PROGRAM [ARG...]: starts ranks of a test on this host so that many ranks share few cores
# without spinning (Open MPI spins in blocking calls unless told to yield, and pins two ranks to two cores).
set -euo pipefail
ranks=$1
shift
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-cma}
exec timeout -k 5 "${FERRY_TEST_TIMEOUT_S:-110}" mpirun -n "$ranks" --oversubscribe "$@"
