#!/usr/bin/env bash
# What a user of a cluster would do, on a virtual one: submit a bench as a job array and a report that depends on it.
# Meanwhile an urgent job preempts one of its tasks, which goes on afterwards. `make slurm-demo` runs it; needs root.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

results=results/slurm-demo
patience=900 # seconds, for everything

fail() {
  echo "demo: $1" >&2
  exit 1
}

field() {
  scontrol show job --oneliner "$1" | grep -o " $2=[^ ]*" | head -n 1 | cut -d= -f2
}

wait_until() {
  local what=$1
  shift
  until "$@"; do
    ((SECONDS < patience)) || fail "waited too long for $what"
    sleep 1
  done
}

is_in_state() {
  [[ $(field "$1" JobState) == "$2" ]]
}

is_training() {
  compgen -G "$results/bench-$bench/*/metrics.rank0.jsonl" >/dev/null
}

has_ended() {
  [[ $(field "$1" JobState) =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)$ ]]
}

export HPCASYNC_CLUSTER=${HPCASYNC_CLUSTER:-/var/tmp/hpcasync-slurm-demo} HPCASYNC_CLUSTER_PORT=${HPCASYNC_CLUSTER_PORT:-27200}
slurm/cluster.sh start
trap 'slurm/cluster.sh stop' EXIT
eval "$(slurm/cluster.sh env)"

export HPCASYNC_RESULTS=$results HPCASYNC_STRATEGIES='sync; stale; eager bound=8' HPCASYNC_REPETITIONS=1
[[ ! -e $results || -e $results/.demo ]] || fail "$results was not made by the demo; move it away first"
rm -rf "$results"
mkdir -p "$results"
touch "$results/.demo"
bench=$(sbatch --parsable --array=0-1%1 --nodes=4 --ntasks-per-node=1 --output="$results/%x-%A_%a.out" \
  slurm/bench.sbatch jobs/image_classification.py --slow 3:4 --step-seconds 0.02 --target 0.95 --seconds 20)
report=$(sbatch --parsable --dependency="afterany:$bench" --output="$results/%x-%j.out" \
  slurm/report.sbatch "$results/bench-$bench")
echo "bench: job array $bench; report: job $report, after it"

wait_until "the first run" is_training
urgent=$(sbatch --parsable --partition=urgent --nodes=4 --output=/dev/null --wrap 'sleep 1')
echo "urgent job $urgent preempts ${bench}_0 ..."
wait_until "the urgent job" has_ended "$urgent"
wait_until "${bench}_0 to be requeued" is_in_state "${bench}_0" PENDING
scontrol update "JobId=${bench}_0" StartTime=now+2 # Slurm would hold it back for two minutes
echo "... and ${bench}_0 goes on"

wait_until "the report" has_ended "$report"
cat "$results/bench-${bench}"_*.out "$results/report-$report.out" | grep -v '^JobId='
is_in_state "$report" COMPLETED || fail "the report has failed"
echo "report: $results/bench-$bench/report.html"
