"""The exceptions whose message is all that the user needs: one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A value that cannot be used. The message is one line: the offending value, and what would be right."""


def suggestion(word: str, known: Iterable[str], otherwise: str) -> str:
    """For a word that is not among the ``known``: the one that may have been meant, or ``otherwise``."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else otherwise


class RunFailure(Exception):  # noqa: N818 -- the run has failed, and no line of code is to blame
    """The run cannot go on: training has diverged, or a rank is stuck. Exit code 1; the message is one line."""
