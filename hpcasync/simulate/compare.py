"""``hpcasync compare``: the time to one loss of every strategy, each with its best step size, on simulated ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from hpcasync.arguments import parse
from hpcasync.bench.rows import Row, Sample, make_rows
from hpcasync.bench.rows_file import check_rows, write_rows
from hpcasync.errors import UsageError
from hpcasync.simulate.cases import CASES, OPTIONS, Case
from hpcasync.simulate.family_plot import draw
from hpcasync.simulate.family_table import BENCH, METRIC, RATE, markdown, terminal
from hpcasync.simulate.learning_rate import best_rate, steady_rate
from hpcasync.simulate.result import missed_why
from hpcasync.simulate.trial import Outcome, Setting, Trial
from hpcasync.strategies import STRATEGIES, parse_strategy

EXAMPLES = """\
hpcasync compare
hpcasync compare --output results/mine --only sync backup ringmaster --ranks 64"""

CAVEAT = """\
A cell is the median of all seeds and, in brackets, the slowest seed's time over the fastest's, with ! above 2: such a
median says little. ~: not all seeds got there, and those that did count. With --compute constant all ranks hand in at
the same moment, in random order, and no rank is ever behind: real ranks are less lucky, so these cells flatter."""


@dataclass(kw_only=True)
class Options:
    """What is compared."""

    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where rows, table and plot go (default: nowhere, the table is shown)."""
    only: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")] = None
    """These strategies (default: all of them)."""
    ranks: int = 8
    """How many simulated ranks: of one node, but of two for hogwild_nodes and halos."""
    seeds: int = 5
    """Trainings per step size. The step size with the best median is taken, of those with which every seed gets there
    if there are any."""

    def resolve(self) -> None:
        """Check every value.

        Raises:
            UsageError: a value that cannot be used.
        """
        for name in ("ranks", "seeds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: it must be 1 or more")
        for name in self.only or ():
            parse_strategy([name])
        if self.output is not None:
            if not self.output.is_dir():
                raise UsageError(f"--output {self.output} is not a folder; make it first")
            check_rows(self.output / "simulated.json")


def compare(words: Sequence[str]) -> int:
    """Compare what ``words`` ask for. 0; 130 when interrupted, with what had been measured until then.

    Raises:
        UsageError: an option that cannot be used.
    """
    cases = "\n".join(f"  {case.name}: {case.told}" for case in CASES)
    purpose = f"{__doc__}\n\nThe cases, as hpcasync simulate has them:\n{cases}\n\n{CAVEAT}"
    options = parse(Options, words, prog="hpcasync compare", description=f"{purpose}\n\n{EXAMPLES}")
    options.resolve()
    samples: list[Sample] = []
    names = options.only or tuple(STRATEGIES)
    code = 0
    try:
        for number, name in enumerate(names, start=1):
            words_of = f"{name} {OPTIONS.get(name, '')}".strip()
            print(f"{number} of {len(names)}: {words_of}", file=sys.stderr, flush=True)
            for case in CASES:
                samples += measure(case, words_of, options)
    except KeyboardInterrupt:
        code = 130
    if samples:
        _show(make_rows(BENCH, samples, {}), options.output)
    return code


def measure(case: Case, words: str, options: Options) -> Iterator[Sample]:
    """The seconds to the tolerance with the best step size, a sample per seed; and that step size times L.

    One seed finds out where to look, for a training with a bad step size is long; all seeds then look around there.
    """
    setting = case.setting(words, options.ranks)
    lr, tried = best_rate(
        lambda lr, within: _train(setting.within(within), lr), setting.problem.smoothness, setting.seconds
    )
    outcomes = [tried[lr]]
    if tried[lr].seconds_to_tolerance is not None:
        lr, outcomes = steady_rate(lambda lr, seed: _train(replace(setting, seed=seed), lr), options.seeds, lr)
    yield Sample(case.name, words, RATE, "1/L", 0, lr * setting.problem.smoothness)
    for seed, outcome in enumerate(outcomes):
        seconds = outcome.seconds_to_tolerance
        missed = None if seconds is not None else missed_why(setting, outcome)
        yield Sample(case.name, words, METRIC, "s", seed, seconds, missed)


def _train(setting: Setting, lr: float) -> Outcome:
    return Trial(setting, lr, lambda *_: None).run()


def _show(rows: Sequence[Row], folder: Path | None) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(terminal(rows))
    if folder is None:
        return
    write_rows(folder / "simulated.json", rows)
    (folder / "simulated.md").write_text(markdown(rows))
    (folder / "simulated.svg").write_text(draw(rows))
    print(f"{folder}: simulated.json, simulated.md, simulated.svg")
