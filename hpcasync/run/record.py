"""A run's folder: run.json, DONE or FAILED.json. Nothing in it is ever overwritten by another run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcasync.errors import RunFailure, UsageError
from hpcasync.json_file import write_json
from hpcasync.launch import environment

SCHEMA = "hpcasync.run/1"


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def create_folder(results: Path, name: str | None, stem: str) -> Path:
    """Make ``results``/``name`` (mode 0700), or a fresh folder named after ``stem`` and the time.

    Raises:
        UsageError: it exists, or cannot be made.
    """
    if name is not None:
        return _make(results / name)
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    names = [f"{stem}-{moment}", *(f"{stem}-{moment}-{i}" for i in range(2, 1000))]
    return _make(next(path for path in map(results.joinpath, names) if not path.exists()))


def _make(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        where = folder if folder.exists() else folder.parent
        raise UsageError(f"{where} exists; choose another --name or --results, or move it away") from None
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what writes into a run's ``folder``. Raises RunFailure, which names it, in place of OSError."""
    try:
        yield
    except OSError as error:
        raise RunFailure(f"{folder} cannot be written: {error.strerror or error}") from error


class Record:
    """The leading rank's hand on the run.json in ``folder``. ``entries`` is its content so far."""

    def __init__(self, folder: Path, entries: dict[str, Any]) -> None:
        self.folder, self._entries = folder, entries

    @classmethod
    def create(cls, folder: Path, entries: dict[str, Any]) -> Record:
        """That of a run that begins now."""
        head = {"schema": SCHEMA, "name": folder.name, "status": "running"}
        tail: dict[str, Any] = {"started": timestamp(), "finished": None, "failures": [], "attempts": [], "summary": {}}
        record = cls(folder, head | entries | tail)
        record._begin(0)
        return record

    @classmethod
    def resume(cls, folder: Path, step: int) -> Record:
        """That of a run that goes on after its leading rank's ``step``."""
        record = cls.take_over(folder)
        if record._entries["attempts"][-1]["status"] == "running":
            record._entries["attempts"][-1]["status"] = "cut off"
        record._entries |= {"status": "running", "finished": None}
        record._begin(step)
        return record

    @classmethod
    def take_over(cls, folder: Path) -> Record:
        """That of a run whose leading rank has died."""
        return cls(folder, json.loads((folder / "run.json").read_text()))

    def lose(self, dead: Sequence[int], survivors: Sequence[int], seconds: float) -> None:
        """Note that ranks ``dead`` have died, ``seconds`` after the start."""
        attempt = len(self._entries["attempts"])
        losses = [{"rank": rank, "seconds": seconds, "survivors": list(survivors), "attempt": attempt} for rank in dead]
        self._entries["failures"] = [*self._entries["failures"], *losses]
        self._write()

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """Replace run.json by its final form, and leave DONE behind a run that is done."""
        now = timestamp()
        self._entries |= {"status": status, "finished": now, "summary": summary}
        self._entries["attempts"][-1] |= {"status": status, "finished": now}
        self._write()
        if status == "done":
            with writing(self.folder):
                (self.folder / "DONE").touch()

    def _begin(self, step: int) -> None:
        """Note another attempt, which begins after ``step``."""
        attempt = {"step": step, "started": timestamp(), "finished": None, "status": "running"}
        self._entries["attempts"].append(attempt | {"slurm": environment.slurm()})
        self._write()

    def _write(self) -> None:
        with writing(self.folder):
            write_json(self.folder / "run.json", self._entries)


def mark_failed(folder: Path, rank: int, error: str, traceback: str) -> bool:
    """Write FAILED.json unless a peer has; True for the one rank whose failure it tells, which also speaks for all.

    That rank sets the status in run.json too, whichever rank it is: rank 0 may be stuck in a call to it. Where nothing
    can be written, every rank that fails speaks.
    """
    entry = json.dumps({"rank": rank, "error": error, "traceback": traceback}, indent=1)
    try:
        with (folder / "FAILED.json").open("x") as file:
            file.write(entry + "\n")
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        return True
    with suppress(OSError, RunFailure, ValueError, LookupError):  # the disk is full, or run.json is damaged
        record = Record.take_over(folder)
        record.finish("failed", record._entries["summary"])
    return True


def has_failed(folder: Path) -> bool:
    """True if some rank has written FAILED.json."""
    return (folder / "FAILED.json").exists()
