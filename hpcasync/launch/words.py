"""A command line that holds a job and its options, and words for bash."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence

from hpcasync.errors import UsageError


def split_at_job(words: Sequence[str]) -> tuple[Sequence[str], str | None, Sequence[str]]:
    """The words before the job, the job, and those after it, which are the job's. A job is a word that ends in .py."""
    for i, word in enumerate(words):
        if word.endswith(".py"):
            return words[:i], word, words[i + 1 :]
    return words, None, ()


def value_of(words: Sequence[str], option: str) -> str | None:
    """The last value of ``option`` in ``words``, given as ``--x 1`` or ``--x=1``."""
    found = None
    for i, word in enumerate(words):
        if word == option:
            found = words[i + 1] if i + 1 < len(words) else None
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def check_words(words: Iterable[str]) -> None:
    """Raises UsageError for what no launcher passes on to a job."""
    if ":" in words:
        raise UsageError("':' as a word of its own begins another program for a launcher; a job cannot be given it")


def quoted(word: str) -> str:
    """``word`` as bash reads it back as one word, in printable characters on one line.

    What does not print (a newline, an escape sequence, a byte that is no text) is written as ``$'\\x0a'``.
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(c if c.isprintable() and c not in "\\'" else _escaped(c) for c in word) + "'"


def command_line(words: Iterable[str]) -> str:
    """``words`` as one line of bash."""
    return " ".join(map(quoted, words))


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
