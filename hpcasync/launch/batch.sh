# shellcheck shell=bash
# What hpcasync's batch scripts share: sourced by slurm/*.sbatch and by the scripts that `hpcasync submit` writes.
#
#     . "$HPCASYNC_HOME/hpcasync/launch/batch.sh"
#     batch_begin                              # site file, Python, traps for Slurm's signals
#     batch_run "$(batch_name train)" JOB.py [options] || true  # one run under the launcher, in $HPCASYNC_RESULTS/NAME
#     batch_end                                # the job's exit code; requeues the job if Slurm has interrupted a run
#
# A run that is done is not made again (one with other options is an error), and one that was interrupted goes on. So a
# script may simply be run again from its beginning, which is what requeueing does.
#
#   HPCASYNC_HOME      folder that hpcasync/ lies in (default: where the job was submitted)
#   HPCASYNC_PYTHON    the Python to run (default: $HPCASYNC_HOME/.venv/bin/python if there, else python3)
#   HPCASYNC_SITE      shell file with the site's lines: module load, export (default: none)
#   HPCASYNC_LAUNCHER  mpirun, mpiexec, srun-pmix or srun-pmi2 (default: mpirun)
#   HPCASYNC_BINDING   core or none: bind every rank to a core, or do not (default: auto, if they all fit)
#   HPCASYNC_RESULTS   folder of the runs' folders (default: results)
#   HPCASYNC_NAME      name of the run's folder (default: the job file's name and the job's id); give that of an earlier
#                      job to go on with its run
#   HPCASYNC_ATTEMPTS  how often the job may be started at most, requeues included, preemptions not (default: 20)
#
# Signals. SIGUSR1 to the script alone (#SBATCH --signal=B:USR1@120: 120 s before the time limit, and at preemption where
# the site has PreemptParameters=send_user_signal): the ranks write a checkpoint, and the job is requeued if steps were
# made since it started. SIGTERM with a preemption under way: a checkpoint, and the job is requeued. Any other SIGTERM, as
# scancel's: a checkpoint, and the job stays cancelled. `sbatch --signal=B:USR1@SECONDS` overrides the 120 s.
# Requires bash 4.4.

batch_code=0   # of the first run that failed
batch_stopped= # exit code of a run that a signal has stopped, or kept from starting
batch_signal=  # the first that the script has received
batch_woken=   # by a signal, out of a wait
batch_run_pid= # while a run is under way
batch_kept=    # yes: a run has ended in this attempt, or has a checkpoint with steps that were made in it

batch_fail() {
  echo "hpcasync: error: $1" >&2
  exit 2
}

batch_say() {
  echo "hpcasync: $1" >&2
}

batch_begin() {
  trap 'batch_signalled USR1' USR1
  trap 'batch_signalled TERM' TERM
  [[ -n ${SLURM_JOB_ID:-} ]] || batch_fail "this is a batch script: sbatch ${0##*/} ..."
  HPCASYNC_HOME=${HPCASYNC_HOME:-$SLURM_SUBMIT_DIR}
  HPCASYNC_LAUNCHER=${HPCASYNC_LAUNCHER:-mpirun}
  HPCASYNC_RESULTS=${HPCASYNC_RESULTS:-results}
  HPCASYNC_ATTEMPTS=${HPCASYNC_ATTEMPTS:-20}
  [[ $HPCASYNC_ATTEMPTS =~ ^[1-9][0-9]{0,5}$ ]] || batch_fail "HPCASYNC_ATTEMPTS=$HPCASYNC_ATTEMPTS: it must be a number from 1 on"
  batch_count
  batch_site
  batch_python
  batch_notes
  ((batch_attempt <= HPCASYNC_ATTEMPTS)) || batch_fail "attempt $batch_attempt, and HPCASYNC_ATTEMPTS=$HPCASYNC_ATTEMPTS"
}

# This attempt's number. Slurm counts requeues, but not those that were preemptions: a file of one line each does.
batch_count() {
  local restarts=${SLURM_RESTART_COUNT:-0} preemptions=0
  batch_preemptions=$HPCASYNC_RESULTS/.preemptions-$(batch_id)
  ((restarts > 0)) || rm -f "$batch_preemptions" # of an older job with this number
  [[ ! -e $batch_preemptions ]] || preemptions=$(wc -l <"$batch_preemptions")
  batch_attempt=$((restarts + 1 - preemptions))
}

# The site's lines are not ours: module functions use variables that are not set, and commands that fail.
batch_site() {
  [[ -n ${HPCASYNC_SITE:-} ]] || return 0
  [[ -r $HPCASYNC_SITE ]] || batch_fail "HPCASYNC_SITE=$HPCASYNC_SITE: there is no such file"
  set +Eeu
  # shellcheck source=/dev/null
  . "$HPCASYNC_SITE"
  set -Eeu
}

batch_python() {
  local python=${HPCASYNC_PYTHON:-$HPCASYNC_HOME/.venv/bin/python}
  [[ -n ${HPCASYNC_PYTHON:-} || -x $python ]] || python=python3
  HPCASYNC_PYTHON=$(command -v "$python") || batch_fail "HPCASYNC_PYTHON=$python: there is no such command"
  export PYTHONPATH=$HPCASYNC_HOME${PYTHONPATH:+:$PYTHONPATH}
}

# For whoever reads the output later. Everything else about a run is in its run.json.
batch_notes() {
  local name
  batch_say "attempt $batch_attempt of at most $HPCASYNC_ATTEMPTS, $(date --iso-8601=seconds), on ${SLURM_JOB_NODELIST:-?}, by $HPCASYNC_LAUNCHER and $HPCASYNC_PYTHON"
  scontrol show job --oneliner "$SLURM_JOB_ID" >&2 || true
  [[ -z ${LOADEDMODULES:-} ]] || batch_say "modules $LOADEDMODULES"
  for name in "${!SBATCH_@}"; do
    batch_say "$name=${!name} was set when this was submitted: it overrides the script's own #SBATCH line"
  done
}

# The id by which Slurm knows this job, or this task of an array: the plain id of a task may stand for the whole array.
batch_id() {
  if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  else
    echo "${SLURM_HET_JOB_ID:-$SLURM_JOB_ID}"
  fi
}

# The name of a run's folder, the same in every attempt.
batch_name() {
  echo "${HPCASYNC_NAME:-$1-$(batch_id)}"
}

# The runs to come belong together, in one folder for all tasks of an array: batch_collect bench
batch_collect() {
  HPCASYNC_RESULTS=$HPCASYNC_RESULTS/${HPCASYNC_NAME:-$1-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}
}

# batch_run NAME JOB.py [options]
batch_run() {
  local name=$1 job=$2 word code
  local folder=$HPCASYNC_RESULTS/$name
  shift 2
  for word in "$@"; do
    case $word in
      --name | --name=* | --results | --results=* | --resume)
        batch_fail "$word is the batch script's own; HPCASYNC_NAME and HPCASYNC_RESULTS say where results go"
        ;;
    esac
  done
  batch_hpcasync "$folder" run "$job" --results "$HPCASYNC_RESULTS" --name "$name" --resume "$@" && code=0 || code=$?
  if ((code == 0)) && [[ ! -e $folder/DONE ]]; then
    batch_say "error: $folder has no DONE, though the exit code is 0"
    code=1
  fi
  batch_note "$code" "$folder/FAILED.json"
}

# batch_sweep NAME SWEEP.toml JOB.py [options]: a worker of the sweep in $HPCASYNC_RESULTS/NAME, until no trial is left
batch_sweep() {
  local name=$1 code
  shift
  batch_hpcasync "$HPCASYNC_RESULTS/$name" sweep --results "$HPCASYNC_RESULTS" --name "$name" "$@" && code=0 || code=$?
  batch_note "$code"
}

# batch_hpcasync FOLDER VERB [words]: its exit code; 85 if a signal has come already
batch_hpcasync() {
  local folder=$1 verb=$2 before code
  shift 2
  [[ -z $batch_stopped$batch_signal ]] || return 85
  before=$(batch_progress "$folder")
  "$HPCASYNC_PYTHON" -m hpcasync.cli "$verb" --launcher "$HPCASYNC_LAUNCHER" --binding "${HPCASYNC_BINDING:-auto}" "$@" &
  batch_wait $! && code=0 || code=$?
  [[ -z $(comm -13 <(echo "$before") <(batch_progress "$folder")) ]] || batch_kept=yes
  return "$code"
}

# What a requeued job does not have to do again: runs that are done and checkpoints, one a line. A checkpoint before the
# first step spares nothing, nor does what was set aside.
batch_progress() {
  [[ -d $1 ]] || return 0
  (cd "$1" && find . -name 'attempt-*' -prune -o \( -name DONE -o -path '*/ckpt/[1-9]*' \) -prune -print) | LC_ALL=C sort
}

# batch_note CODE [FILE]: what ended with this code was stopped, or has failed, which it has for certain if FILE exists
batch_note() {
  if (($1 == 85 || $1 == 143)) || { (($1)) && [[ -z ${2:-} || ! -e $2 ]] && batch_is_interrupted; }; then
    batch_stopped=${batch_stopped:-$1}
  elif ((batch_code == 0)); then
    batch_code=$1
  fi
  return "$1"
}

# The exit code of a run. A trapped signal ends wait, not what is waited for.
batch_wait() {
  local code
  batch_run_pid=$1
  while true; do
    batch_woken=
    wait "$1" && code=0 || code=$?
    [[ -n $batch_woken ]] || break
  done
  batch_run_pid=
  return "$code"
}

# The run gets SIGUSR1 either way: it then asks the ranks for a checkpoint.
batch_signalled() {
  batch_signal=${batch_signal:-$1}
  batch_woken=yes
  batch_say "SIG$1 at $(date --iso-8601=seconds)"
  [[ -z $batch_run_pid ]] || kill -USR1 "$batch_run_pid" 2>/dev/null || true
}

batch_end() {
  local preempted=
  if [[ -n $batch_stopped ]] && batch_is_preempted; then
    preempted=yes
    mkdir -p "$HPCASYNC_RESULTS"
    date --iso-8601=seconds >>"$batch_preemptions"
  fi
  if batch_wants_requeue; then batch_requeue "$preempted"; fi
  [[ -n $preempted ]] || rm -f "$batch_preemptions"
  [[ -z $batch_stopped || $batch_signal != TERM ]] || exit 143
  exit $((batch_stopped ? batch_stopped : batch_code))
}

# Slurm's word on this job.
batch_show() {
  scontrol show job --oneliner "$(batch_id)"
}

# Has a job of higher priority ended this one? Where there is no grace time it is in the queue again already.
batch_is_preempted() {
  local shown
  shown=$(batch_show)
  [[ $shown == *\ PreemptTime=[0-9]* || $shown == *\ JobState=PENDING\ * ]]
}

# Does Slurm want this job to stop? A run that did not listen to its signals yet has been killed by them; that is no
# failure of its own.
batch_is_interrupted() {
  [[ -n $batch_signal ]] || batch_is_preempted
}

# Has a signal stopped a run that shall go on? After SIGTERM only if it came to the ranks alone, for a preemption;
# scancel's comes to the script as well, and to requeue would be to undo it.
batch_wants_requeue() {
  [[ -n $batch_stopped && $batch_signal != TERM ]] || return 1
  ((batch_stopped == 85)) || batch_is_interrupted
}

# batch_requeue PREEMPTED. Where it was the time limit, it would end the next attempt, too: only so often, and only if that
# leads somewhere.
batch_requeue() {
  local id reason=
  id=$(batch_id)
  if [[ $(batch_show) == *\ Requeue=0\ * ]]; then
    reason="it was submitted with --no-requeue"
  elif [[ -z $1$batch_kept ]]; then
    reason="no step was kept in this attempt: a longer time limit is needed"
  elif [[ -z $1 ]] && ((batch_attempt >= HPCASYNC_ATTEMPTS)); then
    reason="this was attempt $batch_attempt, and HPCASYNC_ATTEMPTS=$HPCASYNC_ATTEMPTS"
  fi
  if [[ -n $reason ]]; then
    batch_say "error: job $id is not requeued: $reason"
    rm -f "$batch_preemptions"
    exit 1
  fi
  batch_say "requeues job $id"
  scontrol requeue "$id" || batch_fail "job $id could not be requeued; submit it again, with HPCASYNC_NAME"
  exit 85
}
