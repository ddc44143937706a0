"""Drop what the launcher adds when a rank that failed has already said why.

When a rank ends with a non-zero exit code or calls MPI_Abort, Open MPI prints boxes such as

    --------------------------------------------------------------------------
    prterun detected that one or more processes exited with non-zero status,
    thus causing the job to be terminated. The first process to do so was:
    ...
    --------------------------------------------------------------------------

and MPICH a line ``Abort(1) on node 0 ...``, srun one ``srun: error: n1: task 0: Exited with exit code 2``. They would
bury the one line that says what is wrong. So these boxes, and no others, are held back, and dropped at the end if some
line began with ``hpcasync: `` (which a rank's own explanation does). Otherwise they are shown, late but whole. Ranks
that know nothing of each other make one mistake many times: it is shown once.

What Open MPI says about its own fault tolerance is dropped: that its shared windows are untested after a death (we
have tested the way we use them), and which of its internal schedules a death has cut short; and Horovod's word that a
death has ended its thread.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

EXPLANATION = "hpcasync: "
LOST = f"{EXPLANATION}lost "  # a rank, and the others go on: not the last word
ERROR = f"{EXPLANATION}error: "
WARNING = f"{EXPLANATION}warning: "  # something is wrong, and the run goes on
UNBORN = f"{ERROR}a rank has ended before MPI had started"  # which the others would await for ever
STOPPED = f"{EXPLANATION}stopped by "  # a signal

# Words for `hpcasync run` alone, which shows none of them. The mark tells them from whatever else a job prints, also
# behind a line that has no end yet.
_MARK = "\x1e"
UP = f"{_MARK}{EXPLANATION}up"  # a rank has imported the job
RUNNING = f"{_MARK}{EXPLANATION}running "  # and the run's folder
DONE = f"{_MARK}{EXPLANATION}done"

_STOPPED = re.compile(rf"{STOPPED}(SIG(?:HUP|INT|TERM|USR1))\b")
_RULE = re.compile(r"-{60,}\s*\Z")
_BOX = re.compile(
    r"prterun detected that one or more processes exited with non-zero status"
    r"|MPI_ABORT was invoked on rank"
    r"|prterun has exited due to process rank .* calling\s*\Z"
    r"|PRTE has lost communication with a remote daemon"  # the daemons end in no order
    r"|Sorry!  You were supposed to get help about:\s*\Z"  # when srun's --mpi is wrong
)
_LINE = re.compile(
    r"Abort\(\d+\) on node \d+ .*application called MPI_Abort"
    r"|srun: error: .*: tasks? [\d,-]+: (Exited with exit code|Killed|Terminated)"
    r"|srun: (Terminating StepId|launch/slurm: _step_signal|Job step aborted|got SIGCONT|forcing job termination)"
    r"|\[\S+\] (PRTE ERROR: Not found in file |PMIX ERROR: PMIX_ERR_UNREACH\b)"
    r"|slurmstepd(-\S+)?: error: \*\*\* STEP "
)
_UNTESTED = re.compile(r"WARNING: The selected 'osc' module")
_CHATTER = re.compile(
    r"\s*\d+ more process.* sent help message help-mpi-ft"
    r"|NBC_Progress: an error \d+ was found"
    r"|\[.*: Horovod background loop uncaught exception: MPI_\w+ failed"
)


class Boxes:
    """Fed with stderr line by line, gives back the lines to show now.

    Attributes:
        up: so many ranks have imported the job.
        folder: the run's, once a rank has named it.
        is_done: a rank has said that the run is done.
        is_over: a rank has said how the run has ended; the launcher should end soon.
        is_hopeless: the launcher must be ended now.
        stopped_by: the signal that a rank has said to have stopped the run; None if none has.
        asked_by: the signal that the user has sent, which the ranks got as SIGUSR1; None if none has come.
    """

    def __init__(self) -> None:
        self.up = 0
        self.folder: Path | None = None
        self.is_done = self.is_over = self.is_hopeless = False
        self.stopped_by: signal.Signals | None = None
        self.asked_by: signal.Signals | None = None
        self._errors: set[str] = set()
        self._rule: list[str] = []  # a rule that may open a box: the next line decides
        self._box: list[str] | None = None  # where the lines of the open box go
        self._held: list[str] = []
        self._dropped: list[str] = []

    def feed(self, line: str) -> list[str]:
        """The lines to show now that ``line`` has come."""
        line = line.replace("\0", "")  # Open MPI writes it behind a box
        if _MARK in line:
            line = self._heard(line)
        if not line:
            return []
        if self._box is not None:
            self._box.append(line)
            if _RULE.match(line):
                self._box = None
            return []
        opening, self._rule = self._rule, []
        if opening and (_BOX.match(line) or _UNTESTED.match(line)):
            self._box = self._held if _BOX.match(line) else self._dropped
            self._box += [*opening, line]
            return []
        if _RULE.match(line):
            self._rule = [line]
            return opening
        if _LINE.match(line) or (self._held and line == " "):
            self._held.append(line)
            return opening
        if _CHATTER.match(line) or (self._dropped and not line.strip()):
            self._dropped.append(line)
            return opening
        return opening + self._told(line)

    def rest(self) -> list[str]:
        """The lines still to show at the end."""
        return self._rule + ([] if self.is_over else self._held)

    def _heard(self, line: str) -> str:
        """A word for the launcher, at the end of a line; what stands before it."""
        before, _, rest = line.partition(_MARK)
        word = (_MARK + rest).rstrip("\n")
        self.up += word == UP
        if word.startswith(RUNNING):
            self.folder = Path(word.removeprefix(RUNNING))
        if word == DONE:
            self.is_done = self.is_over = True
        return before + "\n" if before else ""

    def _told(self, line: str) -> list[str]:
        """A line that may be a rank's word about the run."""
        if line.startswith((ERROR, WARNING)):
            if line in self._errors:
                return []
            self._errors.add(line)
        stopped = _STOPPED.match(line)
        if stopped is not None:
            self.stopped_by = signal.Signals[stopped.group(1)]
            line = f"{STOPPED}{(self.asked_by or self.stopped_by).name}{line[stopped.end() :]}"
        self.is_hopeless |= line.startswith(UNBORN)
        self.is_over |= line.startswith(EXPLANATION) and not line.startswith((LOST, WARNING))
        return [line]
