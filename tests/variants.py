"""Which strategies the expensive tests run through: the contract (test_strategies.py) and deaths (test_survival.py).

One or two variants stand for a mechanism: a class, or a path through it that others do not take. To add one, write a
row into VARIANTS if the algorithm exchanges, waits or keeps state in a way that no row does yet. An entry of the table
that only fills in hyperparameters needs no row. Every entry is tried once, cheaply, by test_every_entry_learns_digits:
on 4 simulated ranks, 60 steps of lr 0.1; where that rate is wrong, write the right one into LR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpcasync.strategies import STRATEGIES


@dataclass(frozen=True)
class Variant:
    """A strategy and its options, and what the contract can expect of it.

    Attributes:
        words: as on the command line.
        applies: what lr = 1 makes of the gradients of a linear loss. "sum": every gradient is an update by itself.
            "mean": a round's update is the mean of those who made the round. "share": every gradient is an update of
            one rank's parameters, and those are averaged. "other": another test adds it up.
        alone: a rank alone is plain PyTorch, bit for bit, with SGD and this momentum.
        lr, steps: with which 1 to 4 ranks learn digits: the loss falls below 1.3.
        ties: what draining makes hangs on the order of what happens at one instant.
        deaths: a death at each of its calls is tried, too. False where another variant's windows live as these do.
    """

    words: str
    applies: Literal["sum", "mean", "share", "other"]
    alone: tuple[float, ...] = (0.0, 0.9)
    lr: float = 0.05
    steps: int = 150
    deaths: bool = True
    ties: bool = False

    def __str__(self) -> str:
        return self.words


VARIANTS = [
    Variant("sync", "mean"),
    Variant("stale bound=0", "mean"),
    Variant("stale bound=3", "mean", alone=()),
    Variant("robust rule=mean", "mean", deaths=False),
    Variant("basgd", "other", alone=(), lr=0.2, steps=400, ties=True),
    Variant("eager", "other", lr=0.1, steps=800),  # an update is the mean of up to 9 steps of each rank: fewer, longer
    Variant("as_ready", "mean"),
    Variant("in_backward", "mean"),
    Variant("hogwild", "sum"),
    Variant("hogwild_nodes", "sum"),
    Variant("downpour", "sum"),
    Variant("downpour push=3 pull=2 bound=2", "sum"),
    Variant("server push=3 pull=2", "sum", alone=()),
    Variant("server policy=quorum:2:0.1 owner=adam", "other", alone=(), lr=0.02, steps=70),
    Variant("backup", "other", lr=0.15),
    Variant("ringleader", "other", lr=0.1, steps=250, deaths=False),
    Variant("gap_aware", "other", deaths=False),
    Variant("dana", "sum", alone=(0.0,), deaths=False),
    Variant("easgd period=3", "other", alone=(), lr=0.15),
    Variant("eamsgd momentum=0.5", "other", alone=(), deaths=False),
    Variant("neuron block=64", "sum", deaths=False),
    Variant("neuron_cyclic block=8", "other", alone=(), lr=0.2, steps=300),
    Variant("gauss_southwell block=8", "other", alone=(), lr=0.3, steps=250, deaths=False),
    Variant("sgp", "share", lr=0.1),
    Variant("overlap_sgp peers=random", "share", lr=0.1, deaths=False),
    Variant("layup bucket_bytes=600", "share", lr=0.08, steps=200),
    Variant("adpsgd", "share"),
    Variant("dpsgd", "share"),
    Variant("wagma members=2 bound=2", "share", deaths=False),
    Variant("local_sgd period=3", "other"),
    Variant("cocod period=4 delay=4", "other"),
    Variant("diloco period=5 outer_lr=1 outer_momentum=0.5", "other", alone=(), deaths=False),
    Variant("streaming_diloco period=6 fragments=3 delay=3", "other", alone=(), lr=0.15),
    Variant("delayed_nesterov period=4", "other", alone=(), lr=0.15),
    Variant("dylu period=4 c=0.25", "other", alone=(), lr=0.05, steps=300, deaths=False),
    Variant("halos period=3 accumulate=2 outer_momentum=0.5", "other", alone=(), lr=0.15),
]

LR: dict[str, float] = {
    "basgd": 0.5,
    "easgd": 0.3,
    "eamsgd": 0.01,
    "streaming_diloco": 0.3,
    "delayed_nesterov": 0.3,
    "dylu": 0.3,
    "halos": 0.3,
    "neuron_cyclic": 1.4,
    "asyscd": 1.5,
    "gauss_southwell": 1.0,
    "backup": 0.4,
    "rennala": 0.4,
    "malenia": 0.4,
    "ringleader": 0.3,
    "downpour_adagrad": 0.02,
}

assert {variant.words.split()[0] for variant in VARIANTS} <= STRATEGIES.keys()
