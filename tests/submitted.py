"""hpcasync submit as its tests call it, and texts that no shell is to take for more than a word."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st

from hpcasync import cli
from hpcasync.launch.slurm.request import Request
from hpcasync.launch.slurm.script import Submission, script
from hpcasync.launch.slurm.site import Site

JOB = str(Path(__file__).with_name("tiny_job.py"))
NASTY = st.text(
    st.one_of(st.sampled_from("'\"\\$`;#&|<>(){}[]!*?~=:,%@+-_. \t\r\n\x1b\u2028\u202eé"), st.characters(codec="utf-8"))
)


def call(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``hpcasync WORDS``, in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["hpcasync", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = before
    assert isinstance(end.value.code, int)
    return end.value.code, out.getvalue(), err.getvalue()


def dry_run(*words: str) -> str:
    code, out, err = call("submit", "--dry-run", "--tasks=2", *words)
    assert code == 0, err
    return out


def flags(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def refusal(*words: str) -> str:
    code, out, err = call("submit", "--dry-run", *words)
    assert (code, out) == (2, "")
    assert err.startswith("hpcasync: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("hpcasync: error: ").rstrip("\n")


def written(request: Request, site: Site = Site(), program: Sequence[str] = ("job.py",)) -> str:  # noqa: B008 -- frozen
    return script(request, site, Submission(program, Path("results"), None, 20, "/opt/python", ["hpcasync", "submit"]))
