# shellcheck shell=bash
# What hpcasync's batch scripts share: sourced by slurm/*.sbatch and by the scripts that `hpcasync submit` writes.
#
#     . "$HPCASYNC_HOME/hpcasync/launch/batch.sh"
#     batch_begin                              # site file, Python, traps for Slurm's signals
#     batch_run "$(batch_name train)" JOB.py [options] || true  # one run under the launcher, in $HPCASYNC_RESULTS/NAME
#     batch_end                                # the job's exit code; requeues the job if Slurm has interrupted a run
#
# A run that is done already is not started again, and one that was interrupted goes on. So a script may simply be run
# again from its beginning, which is what requeueing does.
#
#   HPCASYNC_HOME      folder that hpcasync/ lies in (default: where the job was submitted)
#   HPCASYNC_PYTHON    the Python to run (default: $HPCASYNC_HOME/.venv/bin/python if there, else python3)
#   HPCASYNC_SITE      shell file with the site's lines: module load, export (default: none)
#   HPCASYNC_LAUNCHER  mpirun, mpiexec, srun-pmix or srun-pmi2 (default: mpirun)
#   HPCASYNC_BINDING   core or none: bind every rank to a core, or do not (default: auto, if they all fit)
#   HPCASYNC_RESULTS   folder of the runs' folders (default: results)
#   HPCASYNC_NAME      name of the run's folder (default: the job file's name and the job's id); give that of an earlier
#                      job to go on with its run
#   HPCASYNC_ATTEMPTS  how often the job may be started at most, requeues included (default: 20)
#
# Signals. SIGUSR1 to the script alone (#SBATCH --signal=B:USR1@120: so long before the time limit, and at preemption
# where the site has PreemptParameters=send_user_signal): the ranks write a checkpoint, and the job is requeued. SIGTERM
# with a preemption under way: the same. Any other SIGTERM, as scancel's: a checkpoint, and the job stays cancelled.
# Requires bash 4.4.

batch_code=0   # of the first run that failed
batch_stopped= # exit code of a run that a signal has stopped, or kept from starting
batch_signal=  # the first that the script has received
batch_woken=   # by a signal, out of a wait
batch_run_pid= # while a run is under way

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
  batch_attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
  HPCASYNC_HOME=${HPCASYNC_HOME:-$SLURM_SUBMIT_DIR}
  HPCASYNC_LAUNCHER=${HPCASYNC_LAUNCHER:-mpirun}
  HPCASYNC_RESULTS=${HPCASYNC_RESULTS:-results}
  HPCASYNC_ATTEMPTS=${HPCASYNC_ATTEMPTS:-20}
  [[ $HPCASYNC_ATTEMPTS =~ ^[1-9][0-9]{0,5}$ ]] || batch_fail "HPCASYNC_ATTEMPTS=$HPCASYNC_ATTEMPTS: it must be a number from 1 on"
  batch_site
  batch_python
  batch_notes
  ((batch_attempt <= HPCASYNC_ATTEMPTS)) || batch_fail "attempt $batch_attempt, and HPCASYNC_ATTEMPTS=$HPCASYNC_ATTEMPTS"
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
  [[ ! -e $folder/DONE ]] || return 0
  batch_hpcasync run "$job" --results "$HPCASYNC_RESULTS" --name "$name" --resume "$@" && code=0 || code=$?
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
  batch_hpcasync sweep --results "$HPCASYNC_RESULTS" --name "$name" "$@" && code=0 || code=$?
  batch_note "$code"
}

# batch_hpcasync VERB [words]: its exit code; 85 if a signal has come already
batch_hpcasync() {
  [[ -z $batch_stopped$batch_signal ]] || return 85
  "$HPCASYNC_PYTHON" -m hpcasync.cli "$1" --launcher "$HPCASYNC_LAUNCHER" --binding "${HPCASYNC_BINDING:-auto}" "${@:2}" &
  batch_wait $!
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
  if batch_wants_requeue; then batch_requeue; fi
  [[ -z $batch_stopped || $batch_signal != TERM ]] || exit 143
  exit $((batch_stopped ? batch_stopped : batch_code))
}

# Does Slurm want this job to stop? A run that did not listen to its signals yet has been killed by them; that is no
# failure of its own.
batch_is_interrupted() {
  [[ -n $batch_signal || $(scontrol show job --oneliner "$SLURM_JOB_ID") == *\ PreemptTime=[0-9]* ]]
}

# Has a signal stopped a run that shall go on? After SIGTERM only if it came to the ranks alone, for a preemption;
# scancel's comes to the script as well, and to requeue would be to undo it.
batch_wants_requeue() {
  [[ -n $batch_stopped && $batch_signal != TERM ]] || return 1
  ((batch_stopped == 85)) || batch_is_interrupted
}

batch_requeue() {
  local id
  id=$(batch_id)
  if ((batch_attempt >= HPCASYNC_ATTEMPTS)); then
    batch_say "error: job $id is not requeued: this was attempt $batch_attempt, and HPCASYNC_ATTEMPTS=$HPCASYNC_ATTEMPTS"
    exit 1
  fi
  batch_say "requeues job $id"
  scontrol requeue "$id" || batch_fail "job $id could not be requeued; submit it again, with HPCASYNC_NAME"
  exit 85
}
