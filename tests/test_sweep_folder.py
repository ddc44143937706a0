"""A sweep's folder: whose it is, and two workers that make it at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcasync.errors import UsageError
from hpcasync.sweep.folder import Folder
from hpcasync.sweep.worker import Worker
from tests.sweep_trials import JOB, space


def test_another_sweep_is_refused_and_more_trials_are_welcome(tmp_path: Path) -> None:
    text = "trials = 1\n[search]\nlr = { low = 0.1, high = 1.0 }"
    path = tmp_path / "sweep"
    one = Worker(path, space(tmp_path, text), JOB, ["--steps", "1"], None)
    assert one._study.ask() is not None
    more = Worker(
        path, space(tmp_path, text.replace("1\n", "2\n", 1)), JOB, ["--steps", "1"], None, ["--binding", "none"]
    )
    assert more._study.ask() is not None
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for arguments in (
        (space(tmp_path, text.replace("0.1", "0.2")), JOB, ["--steps", "1"], None),
        (space(tmp_path, text), JOB, ["--steps", "2"], None),
        (space(tmp_path, text), JOB, ["--steps", "1"], 3),
    ):
        with pytest.raises(UsageError, match=r"was begun with .* choose another --name"):
            Worker(path, *arguments)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no sweep"):
        Folder(tmp_path).enter({})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="cannot make the folder"):
        Folder(tmp_path / "thesis.txt" / "sweep").enter({})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sweep.json").write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        Folder(tmp_path / "a").enter({})


@pytest.mark.parametrize("call", range(12))
def test_two_workers_make_the_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The other one enters, or is checked, just before each look and each change of this one."""
    calls = itertools.count()
    alone = Folder(tmp_path / "sweep")

    def interleaved(name: str) -> Callable[..., Any]:
        original = getattr(Path, name)

        def patched(self: Path, *args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                other = Folder(tmp_path / "sweep")
                if os.path.lexists(tmp_path / "sweep" / "sweep.lock"):
                    other._check_free(tmp_path / "sweep" / "sweep.json")  # then it waits for the lock
                else:
                    other.enter({"sweep": "a"})
            return original(self, *args, **kwargs)

        return patched

    for name in ("exists", "is_dir", "iterdir", "mkdir", "open", "replace"):
        monkeypatch.setattr(Path, name, interleaved(name))
    alone.enter({"sweep": "a"})
    assert next(calls) > call
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"sweep.json", "logs", "beats"}
