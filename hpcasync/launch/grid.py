"""The points of a grid of options, written down in a TOML file: slurm/sweep.sbatch runs one per task of a job array.

    job = "jobs/image_classification.py"
    words = ["--epochs", "5"]          # of every run; may be left out

    [options]                          # one list of values per option; every combination is a point
    strategy = ["sync", "eager bound=8"]
    lr = [0.1, 0.2]

``python -m hpcasync.launch.grid FILE`` prints all points, one per line, as a shell would read them;
``python -m hpcasync.launch.grid FILE 3`` the words of the point 3, one per line.
"""

from __future__ import annotations

import itertools
import shlex
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcasync.errors import UsageError

_KEYS = ("job", "words", "options")


def points(path: Path) -> list[list[str]]:
    """The words of every point's command line, the job's file first; the last option varies fastest.

    Raises:
        UsageError: there is no such file, or it is no grid.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    for key in document.keys() - set(_KEYS):
        raise UsageError(f"{path}: unknown key {key!r}; the keys are {', '.join(_KEYS)}")
    job, words, options = document.get("job"), document.get("words", []), document.get("options", {})
    if not isinstance(job, str) or not job.endswith(".py"):
        raise UsageError(f"{path}: job = {job!r}: it must be the path of a job file, in quotes")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"{path}: words = {words!r}: it must be a list of words in quotes")
    if not isinstance(options, dict) or not all(isinstance(values, list) and values for values in options.values()):
        raise UsageError(f"{path}: options: every option needs a list of values, such as lr = [0.1, 0.2]")
    axes = [[_option(path, name, value) for value in values] for name, values in options.items()]
    found = [[job, *words, *itertools.chain(*choice)] for choice in itertools.product(*axes)]
    for word in itertools.chain(*found):
        if "\n" in word or "\0" in word:
            raise UsageError(f"{path}: {word!r}: a word must be on one line")
    return found


def _option(path: Path, name: str, value: Any) -> list[str]:
    """``lr``, 0.1 as --lr 0.1; a text is split as a shell does: ``strategy``, "eager bound=8" is three words."""
    if isinstance(value, str):
        try:
            return [f"--{name}", *shlex.split(value)]
        except ValueError as error:
            raise UsageError(f"{path}: {name} = {value!r}: {error}") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [f"--{name}", str(value)]
    raise UsageError(f"{path}: {name} = {value!r}: it must be a text or a number")


def main(words: Sequence[str]) -> None:
    """Print all points, or the words of one.

    Raises:
        UsageError: another use of the command, no grid, or no such point.
    """
    if len(words) not in (1, 2):
        raise UsageError("usage: python -m hpcasync.launch.grid FILE [POINT]")
    found = points(Path(words[0]))
    if len(words) == 1:
        print("\n".join(map(shlex.join, found)))
        return
    if not words[1].isdecimal() or int(words[1]) >= len(found):
        raise UsageError(f"{words[0]} has no point {words[1]}: they are 0-{len(found) - 1} (sbatch --array)")
    print("\n".join(found[int(words[1])]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UsageError as mistake:
        print(f"hpcasync: error: {mistake}", file=sys.stderr)
        sys.exit(2)
