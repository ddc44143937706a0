"""What a sweep leaves behind: ``results/<sweep>/``.

sweep.json                  what is searched, of which job, with which options: the same for every worker
journal.log                 Optuna's journal: every trial, its parameters and its evaluations
trial-0007/                 the run of trial 7: a run folder like any other
logs/trial-0007.log         what it has printed
beats/trial-0007            touched every few seconds by the worker that runs it
table.md, pareto.*, importance.*
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileOpenLock

from hpcasync.errors import UsageError
from hpcasync.json_file import write_json
from hpcasync.run import provenance
from hpcasync.run.record import timestamp

SCHEMA = "hpcasync.sweep/1"
BEAT_SECONDS = 5.0
LOST_SECONDS = 120.0  # without a beat: many times what a shared file system keeps to itself


class Folder:
    """The folder of a sweep, made by the first worker and found by the others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal.log"

    def enter(self, definition: Mapping[str, Any]) -> None:
        """Make it, or find it made for the same ``definition``.

        Raises:
            UsageError: it holds another sweep, or something else; nothing has been changed then.
        """
        definition = json.loads(json.dumps(definition))
        described = self.path / "sweep.json"
        try:
            self._check_free(described)
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.lock():
                if described.exists():
                    _check_same(self.path, json.loads(described.read_bytes()), definition)
                else:
                    made = {"git": provenance.git(Path(__file__).parent), "packages": provenance.packages()}
                    write_json(described, {"schema": SCHEMA, "started": timestamp(), **made, "definition": definition})
                for name in ("logs", "beats"):
                    (self.path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {self.path}: {error.strerror}") from None
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{described}: not valid JSON ({error})") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """No other worker is in here meanwhile, on whatever node. Taken over from a dead worker after 30 s."""
        lock = JournalFileOpenLock(str(self.path / "sweep"))
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def run(self, name: str) -> Path:
        """The run folder of a trial."""
        return self.path / name

    def log(self, name: str) -> Path:
        """What a trial's run prints."""
        return self.path / "logs" / f"{name}.log"

    def beat(self, name: str) -> None:
        """The worker of this trial lives."""
        (self.path / "beats" / name).touch()

    def is_lost(self, name: str) -> bool:
        """The worker of this trial has died: no beat for LOST_SECONDS, by the clock of the file system."""
        beat, now = self.path / "beats" / name, self.path / "beats" / f".now.{os.getpid()}"
        now.touch()
        try:
            return now.stat().st_mtime - beat.stat().st_mtime > LOST_SECONDS
        except FileNotFoundError:
            return True
        finally:
            now.unlink()

    def _check_free(self, described: Path) -> None:
        # Another worker may be making it meanwhile, and writes sweep.json before whatever else: look for that last.
        others = self.path.exists() and not (self.path.is_dir() and all(map(_is_first, self.path.iterdir())))
        if others and not described.exists():
            raise UsageError(f"{self.path} exists and is no sweep; choose another --name, or move it away")


def _is_first(path: Path) -> bool:
    """The lock, its takeover, or sweep.json on its way."""
    return path.name.startswith(("sweep.lock", ".sweep.json."))


def _check_same(path: Path, described: Any, definition: Mapping[str, Any]) -> None:
    before = described.get("definition", {}) if isinstance(described, dict) else {}
    for name in definition.keys() | before.keys():
        if before.get(name) != definition.get(name):
            was, now = before.get(name), definition.get(name)
            raise UsageError(
                f"{path} was begun with {name} {_short(was)}, not {_short(now)}; choose another --name, or move it away"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}\N{HORIZONTAL ELLIPSIS}"
