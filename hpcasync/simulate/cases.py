"""What ``hpcasync compare`` holds every strategy against: problems, and what disturbs the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpcasync.laws import Constant, Exponential, Law, Slow
from hpcasync.simulate.problems import Heterogeneous, Problem, logistic
from hpcasync.simulate.trial import Setting
from hpcasync.strategies import parse_strategy

BATCH = 32
UNTIL = 0.01  # the tolerance, as a share of the gap at the start
SLOWNESS = 10.0
ALPHA, BETA = 0.1, 0.005  # of the slow network: an allreduce of 8 ranks takes 1.8 s, a step 1 s


@dataclass(frozen=True)
class Case:
    """A problem for ``n`` ranks, how long their steps take, and what a message costs.

    Attributes:
        name: a column's title.
        told: the same as options of ``hpcasync simulate``.
        seconds: virtual, after which a training has failed.
    """

    name: str
    told: str
    problem: Callable[[int], Problem]
    law: Law
    alpha: float = 0.0
    beta: float = 0.0
    seconds: float = 500.0

    def setting(self, words: str, ranks: int) -> Setting:
        choice = parse_strategy(words.split())
        return Setting(
            self.problem(ranks),
            ranks,
            self.law,
            choice,
            UNTIL,
            self.seconds,
            self.alpha,
            self.beta,
            ranks_per_node=-(-ranks // 2) if choice.name in TWO_LEVELS else None,
        )


def _logistic(ranks: int) -> Problem:
    return logistic(BATCH)


CASES = (
    Case("no straggler", "--problem logistic --compute constant", _logistic, Constant()),
    Case(
        "one slow rank",
        f"--problem logistic --compute slow:0:{SLOWNESS:g}",
        _logistic,
        Slow(0, SLOWNESS),
    ),
    Case("jitter", "--problem logistic --compute exponential", _logistic, Exponential()),
    Case(
        "slow network",
        f"--problem logistic --compute constant --alpha {ALPHA:g} --beta {BETA:g}",
        _logistic,
        Constant(),
        ALPHA,
        BETA,
    ),
    Case(
        "unlike data, one slow rank",
        f"--problem heterogeneous --compute slow:0:{SLOWNESS:g}",
        Heterogeneous,
        Slow(0, SLOWNESS),
        seconds=100.0,
    ),
)

# These run on two nodes, since on one node their two levels are one; all others run on one.
TWO_LEVELS = ("hogwild_nodes", "halos")

# Where the papers' defaults are meant for thousands of steps: these trainings have about fifty. A step that updates a
# block of neurons computes the whole gradient here, and takes as long. dc_asgd's strength is the batch size.
OPTIONS = {
    "dc_asgd": f"policy=dc:{BATCH}",
    "diloco": "period=4",
    "streaming_diloco": "period=4 fragments=2 delay=1",
    "local_sgd": "period=4",
    "slowmo": "period=4",
    "cocod": "period=4 delay=4",
    "delayed_nesterov": "period=4",
    "dylu": "period=4",
    "halos": "period=4 accumulate=4",
    "easgd": "period=2",
    "eamsgd": "period=2 momentum=0.9",
    "neuron_cyclic": "block=5",
    "asyscd": "block=5",
    "gauss_southwell": "block=5",
}
