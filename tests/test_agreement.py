"""Ranks that do not train alike: one line that names rank and difference, before anything is exchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.run import Options
from hpcasync.run.agreement import Description, check_alike, describe
from hpcasync.strategies import parse_strategy
from hpcasync.world import World
from tests import tiny_job


def sgd(replica: Replica, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(replica.parameters(), **({"lr": 0.1} | options))


def two_groups(replica: Replica) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": replica.parameters()}, {"params": [nn.Parameter(torch.zeros(2))]}], lr=0.1)


def description(
    model: Callable[[], nn.Module] = lambda: nn.Linear(3, 1),
    optimizer: Callable[[Replica], torch.optim.Optimizer] = sgd,
    **options: Any,
) -> Description:
    """What a rank with this model, this optimizer and these options describes."""
    chosen = Options(**options)
    replica = Replica(model())
    choice = parse_strategy(chosen.strategy, chosen.compress)
    return describe(choice, replica, optimizer(replica), chosen.of_every_rank())


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 1), nn.Linear(3, 1).requires_grad_(False))


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "size": (
        {"model": lambda: nn.Linear(4, 1)},
        "rank 1 has a model of 5 trainable parameters, rank 0 has a model of 4",
    ),
    "dtype": ({"model": lambda: nn.Linear(3, 1).double()}, "weight of shape (1, 3) and float64 in its model, rank 0"),
    "buffers": ({"model": lambda: nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1, affine=False))}, "running_mean"),
    "frozen": ({"model": frozen}, "rank 1 has 1.weight of shape (1, 3) and float32 in its model, rank 0 has no"),
    "strategy": ({"strategy": ("downpour",)}, "rank 1 has --strategy downpour push=1 pull=1"),
    "hyperparameter": ({"strategy": ("local_sgd", "period=3")}, "rank 1 has --strategy local_sgd period=3"),
    "compression": ({"compress": "fp16"}, "rank 1 has --compress fp16, rank 0 has no --compress"),
    "lr": ({"lr": 0.2}, "rank 1 has --lr 0.2, rank 0 has --lr 0.1"),
    "seed": ({"seed": 7}, "rank 1 has --seed 7, rank 0 has --seed 0"),
    "batch size": ({"batch_size": 8}, "rank 1 has --batch-size 8, rank 0 has --batch-size 32"),
    "steps": ({"steps": 8}, "rank 1 has --steps 8, rank 0 has no --steps"),
    "optimizer": ({"optimizer": lambda r: torch.optim.Adagrad(r.parameters(), lr=0.1)}, "rank 1 has the optimizer Ada"),
    "momentum": (
        {"optimizer": lambda r: sgd(r, momentum=0.5)},
        "rank 1 has momentum=0.5 in SGD, rank 0 has momentum=0 ",
    ),
    "its lr": ({"optimizer": lambda r: sgd(r, lr=torch.tensor(0.5))}, "rank 1 has lr=0.5 in SGD, rank 0 has lr=0.1 in"),
    "groups": (
        {"optimizer": two_groups},
        "rank 1 has 2 group(s) of parameters in its optimizer, rank 0 has 1 group(s)",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_disagreement_names_rank_and_difference(kind: str, ranks: Any) -> None:
    changes, told = KINDS[kind]

    def main(world: World) -> str:
        base: dict[str, Any] = {"strategy": ("local_sgd",)} if kind == "hyperparameter" else {}
        mine = description(**(base | (changes if world.rank == 1 else {})))
        if world.size == 1:
            check_alike(world, mine)
            return told
        with pytest.raises(UsageError) as error:
            check_alike(world, mine)
        return str(error.value)

    for line in ranks(main):
        assert told in line
        assert "\n" not in line


def test_ranks_that_train_alike_may_have_other_machines_and_folders(ranks: Any) -> None:
    def main(world: World) -> None:
        mine = description(threads=1 + world.rank, data=Path(f"/local/{world.rank}"), strategy=("downpour", "pull=1"))
        check_alike(world, mine)
        assert mine == description(strategy=("downpour",))  # however its defaults are written

    ranks(main)


def test_ranks_that_differ_in_the_same_are_named_together(ranks: Any) -> None:
    def main(world: World) -> None:
        if world.size < 3:
            return
        with pytest.raises(UsageError) as error:
            check_alike(world, description(seed=min(world.rank, 2)))
        last = world.size - 1
        others = "rank 2 has" if last == 2 else f"ranks 2 and {last} have"
        assert str(error.value).endswith(
            f": rank 1 has --seed 1, rank 0 has --seed 0; {others} --seed 2, rank 0 has --seed 0"
        )

    ranks(main)


def test_many_differences_are_counted() -> None:
    from hpcasync.sim import simulate

    def main(world: World) -> str:
        with pytest.raises(UsageError) as error:
            check_alike(
                world,
                description(seed=world.rank, lr=0.1 + world.rank, batch_size=1 + world.rank, steps=9 + world.rank),
            )
        return str(error.value)

    assert {line.rpartition(" (and ")[2] for line in simulate(main, 2)} == {"1 more)"}


def test_values_are_written_alike_on_every_rank() -> None:
    """No address, no order that hangs on a process's hashes."""
    lines = [
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from hpcasync.run.agreement import _text; print(_text([{'a', 'b', 'c'}, print, object()]))",
            ],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(tiny_job.__file__).parents[1])},
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert lines[0] == lines[1] == "({a, b, c}, builtin_function_or_method, object)\n"


def test_real_ranks_started_with_other_options_end_at_once(tmp_path: Path) -> None:
    def program(*words: str) -> list[str]:
        return ["-n", "1", sys.executable, tiny_job.__file__, "--results", str(tmp_path), "--name", "run", *words]

    launcher = str(Path(sys.executable).with_name("mpirun"))
    ended = subprocess.run(
        [launcher, "--oversubscribe", *program("--lr", "0.1"), ":", *program("--lr", "0.2", "--strategy", "downpour")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1"),
    )
    assert ended.returncode == 2
    (line,) = re.findall(r"^hpcasync: error: .*", ended.stderr, re.MULTILINE)
    assert "rank 1 has --lr 0.2, rank 0 has --lr 0.1" in line
    assert "rank 1 has --strategy downpour push=1 pull=1" in line
    assert not (tmp_path / "run").exists()
