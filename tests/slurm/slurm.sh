#!/usr/bin/env bash
# slurm.sh: a real Slurm (munge, slurmctld, one slurmd per host) on the hosts of tests/cluster/cluster.sh.
#   slurm.sh check          exit 0 when this machine permits it, else says why not
#   slurm.sh up N           N hosts with 4 CPUs each, all idle
#   slurm.sh CMD...         sbatch, squeue, scontrol ... on host 0
#   slurm.sh power-off HOST every process of that host ends at once, slurmd and ranks alike
#   slurm.sh start HOST     slurmd again
#   slurm.sh down           ends every process that it started, and removes all
# SLURM_TEST_DIR keeps everything; CLUSTER_NAME and CLUSTER_NET as of cluster.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${SLURM_TEST_DIR:?}
name=${CLUSTER_NAME:?} net=${CLUSTER_NET:?}
export CLUSTER_DIR=$dir/cluster SLURM_CONF=$dir/slurm.conf
cluster=$here/../cluster/cluster.sh

check() {
    "$cluster" check || return 1
    local tool
    for tool in munged slurmctld slurmd sbatch srun; do
        command -v $tool >/dev/null || PATH=$PATH:/usr/sbin command -v $tool >/dev/null ||
            { echo "needs $tool (Debian: munge slurm-wlm)"; return 1; }
    done
    compgen -G "/usr/lib*/*/slurm*/mpi_pmix*.so" >/dev/null || compgen -G "/usr/lib*/slurm*/mpi_pmix*.so" >/dev/null ||
        { echo "this Slurm has no PMIx plugin"; return 1; }
}

write_config() {
    local n=$1 i
    # cred_expire: else a requeued job waits for two minutes. config_overrides: 4 CPUs on a machine with fewer.
    cat >"$dir/slurm.conf" <<CONF
ClusterName=$name
SlurmctldHost=${name}0($net.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=5
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
JobRequeue=1
SlurmdTimeout=5
SlurmctldTimeout=20
KillWait=3
MinJobAge=600
InactiveLimit=0
PropagateResourceLimitsExcept=MEMLOCK
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for ((i = 0; i < n; i++)); do
        echo "NodeName=$name$i NodeAddr=$net.$((i + 1)) CPUs=4 State=UNKNOWN" >>"$dir/slurm.conf"
    done
    # The autodetection of cgroups fails in a network namespace. Hosts share /tmp but not /dev/shm.
    echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
    echo "PMIxCliTmpDirBase=/dev/shm" >"$dir/mpi.conf"
}

up() {
    local n=$1 i
    mkdir -p "$dir"/{state,log,spool}
    chmod 755 "$dir"
    for ((i = 0; i < n; i++)); do mkdir -p "$dir/spool/$name$i"; done
    write_config "$n"
    (umask 077; dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 status=none)
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed" 2>"$dir/log/munged.err" ||
        { cat "$dir/log/munged.err"; return 1; }
    "$cluster" up "$n"
    "$cluster" exec "${name}0" slurmctld -c -f "$SLURM_CONF"
    for ((i = 0; i < n; i++)); do start "$name$i"; done
    for ((i = 0; i < 100; i++)); do
        [ "$("$cluster" exec "${name}0" sinfo -h -o '%T %D' 2>/dev/null)" = "idle $n" ] && return
        sleep 0.1
    done
    echo "slurm.sh: not all hosts became idle" >&2
    tail -5 "$dir"/log/*.log >&2
    return 1
}

start() { "$cluster" exec "$1" slurmd -f "$SLURM_CONF"; }

# All but the process that keeps the host's namespaces.
power_off() {
    local process keeper
    keeper=$(cat "$CLUSTER_DIR/$1/pid")
    for process in $(ip netns pids "$1"); do
        [ "$process" = "$keeper" ] || kill -KILL "$process" 2>/dev/null || true
    done
    rm -f "$dir/slurmd.$1.pid"
}

down() {
    local file
    for file in "$dir"/slurmd.*.pid "$dir/slurmctld.pid" "$dir/munged.pid"; do
        [ ! -e "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
    done
    "$cluster" down || true  # and every process of the hosts
    rm -rf "$dir"
}

command=$1
shift
export PATH=$PATH:/usr/sbin
case $command in
    check) check ;;
    up) up "$@" ;;
    start) start "$@" ;;
    power-off) power_off "$@" ;;
    down) down ;;
    *) exec "$cluster" exec "${name}0" "$command" "$@" ;;
esac
