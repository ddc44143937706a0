"""What the tests of hpcasync simulate share: one trial, and one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcasync.laws import parse_law
from hpcasync.simulate.main import main
from hpcasync.simulate.problems import Problem, Tridiagonal
from hpcasync.simulate.trial import Outcome, Setting, Trial
from hpcasync.strategies import parse_strategy


def attempt(
    words: str = "sync",
    ranks: int = 4,
    compute: str = "constant",
    lr: float = 0.5,
    until: float | None = None,
    seconds: float = 1e4,
    problem: Problem | None = None,
    **more: Any,
) -> tuple[Setting, Outcome]:
    law, choice = parse_law(compute), parse_strategy(words.split())
    setting = Setting(problem or Tridiagonal(), ranks, law, choice, until, seconds, **more)
    return setting, Trial(setting, lr, lambda *_: None).run()


def run(words: str, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The rows that the command line leaves, by metric."""
    file = tmp_path / "rows.json"
    assert main([*words.split(), "--json", str(file)]) == 0
    return {row["metric"]: row for row in json.loads(file.read_text())}
