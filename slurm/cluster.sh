#!/usr/bin/env bash
# A Slurm cluster on one machine, to try and test batch scripts on: real slurmctld and slurmd, one per virtual node.
#
#     slurm/cluster.sh start [NODES [CPUS]]    # 4 nodes of 2 CPUs by default; needs root
#     eval "$(slurm/cluster.sh env)"           # sbatch, squeue, scancel ... now talk to it
#     slurm/cluster.sh stop
#
# Debian's packages: slurm-wlm munge libpmix-dev. Every slurmd has a hostname and a view of /etc/hosts of its own, so
# that MPI sees as many hosts; memory and file systems are shared. Partitions: debug, and urgent, which preempts it.
# The state is kept in $HPCASYNC_CLUSTER (default: /var/tmp/hpcasync-slurm).
set -Eeuo pipefail

lab=${HPCASYNC_CLUSTER:-/var/tmp/hpcasync-slurm}
port=${HPCASYNC_CLUSTER_PORT:-27100}
host=$(hostname -s)
export SLURM_CONF=$lab/slurm.conf

fail() {
  echo "cluster: $1" >&2
  exit 2
}

require() {
  ((EUID == 0)) || fail "only root can start slurmd under other hostnames"
  local tool missing=()
  for tool in slurmctld slurmd munged sinfo; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  ((${#missing[@]} == 0)) || fail "no ${missing[*]}: apt-get install slurm-wlm munge libpmix-dev"
}

# Slurm's PMIx plugin opens libpmix.so, the name that only the development package has.
check_pmix() {
  local folder
  folder=/usr/lib/$(uname -m)-linux-gnu/pmix2/lib
  [[ -e $folder/libpmix.so ]] || echo "cluster: no libpmix.so in $folder: srun --mpi=pmix will not work (libpmix-dev)" >&2
}

write_configuration() {
  local nodes=$1 cpus=$2 memory
  memory=$(($(getconf _PHYS_PAGES) * $(getconf PAGESIZE) / 1048576)) # MB; every node has it all, and Slurm limits nothing
  cat >"$SLURM_CONF" <<CONF
ClusterName=hpcasync
SlurmctldHost=$host
SlurmctldPort=$port
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
ReturnToService=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$lab/jobcomp.txt
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool.%n
SlurmctldPidFile=$lab/slurmctld.pid
SlurmdPidFile=$lab/slurmd.%n.pid
SlurmctldLogFile=$lab/slurmctld.log
SlurmdLogFile=$lab/slurmd.%n.log
SlurmdParameters=config_overrides
NodeName=n[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus RealMemory=$memory
PartitionName=debug Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n[1-$nodes] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

# A site file for hpcasync/launch/batch.sh: there are more ranks than cores, so an idle one yields its core.
write_site() {
  cat >"$lab/site.sh" <<'SITE'
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_osc=^ucx MPIR_CVAR_ENABLE_HEAVY_YIELD=1
SITE
}

start_munge() {
  [[ -S /run/munge/munge.socket.2 ]] && munge -n >/dev/null 2>&1 && return
  install -d -o munge -g munge /run/munge
  runuser -u munge -- /usr/sbin/munged
}

start_node() {
  local node=$1
  mkdir -p "$lab/conf.$node" "$lab/spool.$node" "$lab/pmix.$node"
  ln -sf "$SLURM_CONF" "$lab/conf.$node/slurm.conf"
  echo "PMIxCliTmpDirBase=$lab/pmix.$node" >"$lab/conf.$node/mpi.conf" # the nodes share /tmp
  # shellcheck disable=SC2016 # expanded by the inner shell
  unshare --uts --mount sh -c \
    'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && exec slurmd -f "$2/conf.$1/slurm.conf" -N "$1"' \
    sh "$node" "$lab"
}

start() {
  local nodes=${1:-4} cpus=${2:-2} i
  [[ $nodes =~ ^[1-9][0-9]?$ ]] || fail "'$nodes' nodes: a number from 1 to 99"
  [[ $cpus =~ ^[1-9][0-9]?$ ]] || fail "'$cpus' CPUs: a number from 1 to 99"
  require
  if running "$lab/slurmctld.pid" >/dev/null; then fail "one runs already in $lab: slurm/cluster.sh stop"; fi
  check_pmix
  rm -rf "$lab"
  mkdir -p "$lab/state"
  write_configuration "$nodes" "$cpus"
  write_site
  {
    echo "127.0.0.1 localhost $host"
    for ((i = 1; i <= nodes; i++)); do echo "127.0.0.1 n$i"; done
  } >"$lab/hosts"
  touch "$lab/jobcomp.txt"
  start_munge
  slurmctld -f "$SLURM_CONF"
  for ((i = 1; i <= nodes; i++)); do start_node "n$i"; done
  for ((i = 0; i < 150; i++)); do
    [[ $(sinfo -h -t idle -p debug -o %D 2>/dev/null) == "$nodes" ]] && break
    sleep 0.2
  done
  ((i < 150)) || fail "the nodes did not come up in 30 s; see $lab/slurmctld.log"
  sinfo
}

# The process that a pid file names, if it is there; a daemon that ends removes its file at any moment.
running() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null && echo "$pid"
}

# What is left of a job would go on calling the controller of the next cluster, which has a job of the same number.
end_jobs() {
  scancel --user=root >/dev/null 2>&1 || true
  for _ in {1..100}; do
    [[ -n $(squeue --noheader 2>/dev/null) ]] || return 0
    sleep 0.2
  done
}

stop() {
  local file pid pids=()
  if running "$lab/slurmctld.pid" >/dev/null; then end_jobs; fi
  for file in "$lab"/slurmd.*.pid "$lab/slurmctld.pid"; do
    pid=$(running "$file") && kill "$pid" 2>/dev/null && pids+=("$pid")
  done
  for pid in "${pids[@]}"; do
    for _ in {1..50}; do
      kill -0 "$pid" 2>/dev/null || continue 2
      sleep 0.2
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

case ${1:-} in
  start) start "${@:2}" ;;
  stop) stop ;;
  env) printf 'export SLURM_CONF=%q HPCASYNC_SITE=%q\n' "$SLURM_CONF" "$lab/site.sh" ;;
  *) fail "usage: cluster.sh start [NODES [CPUS]] | env | stop" ;;
esac
