"""Run a command that signals do not reach: python deaf.py TERM,USR1 COMMAND ...

Slurm sends a signal to every process of a job's steps at once: SIGTERM when the job is cancelled or preempted. The
ranks shall write a checkpoint then; Open MPI's daemons would kill them instead. So the daemons have the signal blocked,
not ignored: they give the ranks that they start an empty mask. SIGKILL ends them all.

Uses nothing but the standard library: it is run as a file, on every node, before anything else.
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.Signals[f"SIG{name}"] for name in sys.argv[1].split(",")])
    os.execvp(sys.argv[2], sys.argv[2:])
