"""The exceptions whose message is all that the user needs: one line, without a traceback."""


class UsageError(ValueError):
    """A value that cannot be used. The message is one line: the offending value, and what would be right."""


class RunFailure(Exception):  # noqa: N818 -- the run has failed, and no line of code is to blame
    """The run cannot go on: training has diverged, or a rank is stuck. Exit code 1; the message is one line."""
