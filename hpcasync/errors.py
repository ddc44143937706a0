"""The one exception that is the user's to mend."""


class UsageError(ValueError):
    """A value that cannot be used. The message is one line: the offending value, and what would be right."""
