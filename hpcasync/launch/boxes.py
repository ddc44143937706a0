"""Drop what the launcher adds when a rank that failed has already said why.

When a rank ends with a non-zero exit code or calls MPI_Abort, Open MPI prints boxes such as

    --------------------------------------------------------------------------
    prterun detected that one or more processes exited with non-zero status,
    thus causing the job to be terminated. The first process to do so was:
    ...
    --------------------------------------------------------------------------

and MPICH a line ``Abort(1) on node 0 ...``. They would bury the one line that says what is wrong. So these boxes, and
no others, are held back, and dropped at the end if some line began with ``hpcasync: `` (which a rank's own explanation
does). Otherwise they are shown, late but whole.
"""

from __future__ import annotations

import re

EXPLANATION = "hpcasync: "
_RULE = re.compile(r"-{60,}\s*\Z")
_BOX = re.compile(
    r"prterun detected that one or more processes exited with non-zero status"
    r"|MPI_ABORT was invoked on rank"
    r"|prterun has exited due to process rank .* calling\s*\Z"
)
_LINE = re.compile(r"Abort\(\d+\) on node \d+ .*application called MPI_Abort")


class Boxes:
    """Fed with stderr line by line, gives back the lines to show now."""

    def __init__(self) -> None:
        self._explained = False
        self._rule: list[str] = []  # a rule that may open a box: the next line decides
        self._inside = False
        self._held: list[str] = []

    def feed(self, line: str) -> list[str]:
        """The lines to show now that ``line`` has come."""
        if self._inside:
            self._held.append(line)
            self._inside = not _RULE.match(line)
            return []
        opening, self._rule = self._rule, []
        if opening and _BOX.match(line):
            self._held += [*opening, line]
            self._inside = True
            return []
        if _RULE.match(line):
            self._rule = [line]
            return opening
        if _LINE.match(line) or (self._held and line in (" ", "\0")):
            self._held.append(line)
            return opening
        self._explained |= line.startswith(EXPLANATION)
        return [*opening, line]

    def rest(self) -> list[str]:
        """The lines still to show at the end."""
        return self._rule + ([] if self._explained else self._held)
