"""Following the files of a run while it writes them: every line is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcasync.report.read import Evaluation, number, numbers, parse_line

EVALUATION = b'"evaluation"'  # on a line that tells of one


class Tail:
    """The whole lines that a growing file has got since the last look; a torn last one waits until it is whole.

    Args:
        last_bytes: begin so many bytes before the end of the file as it is at the first look; None: at its beginning.
    """

    def __init__(self, path: Path, last_bytes: int | None = None) -> None:
        self._path, self._last_bytes = path, last_bytes
        self._offset = 0
        self._rest = b""

    def lines(self) -> list[bytes]:
        """Without their ends. A file that has become shorter (a run that is resumed forgets lines) is read again."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    self._offset, self._rest = 0, b""
                if self._last_bytes is not None:
                    self._offset, self._last_bytes = max(0, size - self._last_bytes), None
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return []
        self._offset += len(content)
        *whole, self._rest = (self._rest + content).split(b"\n")
        return whole

    def records(self, word: bytes = b"") -> list[dict[str, Any]]:
        """The objects on the new lines that hold ``word``; what is no object is skipped."""
        return [found for line in self.lines() if word in line and (found := record(line))]


def record(line: bytes) -> dict[str, Any]:
    """The object on a line; an empty one where there is none."""
    return parse_line(line.decode("utf-8", errors="replace"))


def evaluation(found: dict[str, Any]) -> Evaluation:
    """The evaluation that a line of a metrics file tells of."""
    return Evaluation(number(found.get("step")), number(found.get("seconds")), numbers(found.get("evaluation")))


class Evaluations:
    """Those of the run in ``folder``, in the files of all ranks: whoever leads evaluates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[Path, Tail] = {}

    def new(self) -> list[Evaluation]:
        """Those since the last look, in the order of their seconds; some may come again after a resume."""
        found = [
            evaluation(line)
            for path in self._folder.glob("metrics.rank*.jsonl")
            for line in self._tails.setdefault(path, Tail(path)).records(EVALUATION)
        ]
        return sorted((each for each in found if each.seconds == each.seconds), key=lambda each: each.seconds)
