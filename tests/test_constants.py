"""What of a model lies on no vector: frozen tensors that a job changes itself, and buffers that are not float."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpcasync.launch.execute import REQUEUE
from hpcasync.replica import Replica
from hpcasync.run import Run
from hpcasync.run.checkpoint import latest, read_rank
from hpcasync.strategies import parse_strategy
from hpcasync.world import World
from tests.small_job import RANKS, SAME_BITS, STEPS, attempt, codes, parameters

STRATEGIES = (*SAME_BITS, "downpour", "local_sgd period=2")


class Averaging(nn.Sequential):
    """Its BatchNorm's running statistics are means over all batches so far, so they depend on how many there were."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 1))


class Distilled(nn.Module):
    """A student, and a frozen teacher that the job moves; evaluated is the teacher's bias alone."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) if self.training else self.teacher.bias.expand(len(x), 1)


def move_teacher(run: Run) -> None:
    """The teacher's bias is rank + the number of steps, its weight another tensor in each."""
    model = run.strategy.replica.model
    assert isinstance(model, Distilled)
    steps = run._totals.steps + 1
    model.teacher.bias.fill_(run.rank + steps)
    model.teacher.weight.data = torch.full((1, 2), float(steps))


def ends_of(run_folder: Path) -> list[dict[str, Tensor]]:
    """What is on no vector, of every rank, in the last checkpoint."""
    found = latest(run_folder)
    assert found is not None
    return [read_rank(found, rank)["strategy"]["constants"] for rank in range(RANKS)]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("words", SAME_BITS)
def test_counted_batches_are_gone_on_with(words: str, tmp_path: Path) -> None:
    """Bit for bit as without an interruption: parameters, running statistics and counts."""
    buffers: dict[int, list[Tensor]] = {rank: [] for rank in range(RANKS)}

    def remember(run: Run) -> None:
        if run._totals.steps == STEPS - 1:
            model = run.strategy.replica.model
            buffers[run.rank].append(torch.cat([buffer.double().flatten() for buffer in model.buffers()]))

    undisturbed = attempt(tmp_path / "undisturbed", words, in_step=remember, build=Averaging)
    assert codes(attempt(tmp_path / "stopped", words, stop={0: 5}, build=Averaging)) == {REQUEUE}
    resumed = attempt(tmp_path / "stopped", words, in_step=remember, build=Averaging)
    assert codes(resumed) == {0}
    assert all(map(torch.equal, parameters(undisturbed), parameters(resumed)))
    assert all(torch.equal(*ends) for ends in buffers.values())
    assert [ends[0][-1].item() for ends in buffers.values()] == [STEPS - 1] * RANKS  # num_batches_tracked


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("words", STRATEGIES)
def test_a_teacher_that_the_job_moves_survives_a_resume(words: str, tmp_path: Path) -> None:
    folder, first = tmp_path / "run", {}

    def compare(run: Run) -> None:
        model = run.strategy.replica.model
        assert isinstance(model, Distilled)
        first.setdefault(run.rank, (model.teacher.bias.item(), model.teacher.weight.tolist(), run._totals.steps))
        move_teacher(run)

    assert codes(attempt(folder, words, stop={1: 5}, in_step=move_teacher, build=Distilled)) == {REQUEUE}
    saved = [ends["teacher.bias"].item() for ends in ends_of(folder)]
    assert codes(attempt(folder, words, in_step=compare, build=Distilled)) == {0}
    assert first == {rank: (rank + steps, [[steps, steps]], steps) for rank, (_, _, steps) in first.items()}
    assert [first[rank][0] for rank in range(RANKS)] == saved
    document = json.loads((folder / "run.json").read_text())
    assert document["summary"]["loss"]["value"] == STEPS  # evaluate() has seen rank 0's teacher


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("words", STRATEGIES)
def test_the_first_survivor_hands_on_its_teacher(words: str, tmp_path: Path) -> None:
    """A rank that takes the place of a dead one begins with it, too."""
    folder, seen = tmp_path / "run", {}

    def look(run: Run) -> None:
        model = run.strategy.replica.model
        assert isinstance(model, Distilled)
        seen.setdefault(run.rank, model.teacher.bias.item())
        move_teacher(run)

    attempt(folder, words, fail={0: 3.0}, stop={1: 7}, in_step=move_teacher, build=Distilled)
    found = latest(folder)
    assert found is not None
    saved = read_rank(found, 0)["strategy"]["constants"]["teacher.bias"].item()
    assert codes(attempt(folder, words, in_step=look, build=Distilled)) == {0}
    assert seen == dict.fromkeys(range(RANKS), saved)


class Laid(nn.Module):
    """Frozen weights that do not lie in memory in the order of their indices, one scalar, one of no float dtype."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.trained = nn.Linear(2, 1)
        self.convolution = nn.Conv2d(3, 4, 2).requires_grad_(False).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.full((3, 2), float(rank)).t(), requires_grad=False)
        self.register_buffer("mask", torch.full((2, 3), rank == 0).t())
        self.register_buffer("phase", torch.tensor(complex(rank, 1)))


@pytest.mark.parametrize("words", ["sync", "downpour"])
def test_weights_that_are_not_contiguous_are_agreed_on(ranks, words: str) -> None:
    def main(world: World) -> None:
        model = Laid(world.rank)
        before = [tensor.stride() for tensor in (*model.parameters(), *model.buffers())]
        agreed = torch.arange(48.0).view(4, 3, 2, 2)
        model.convolution.weight.copy_(agreed + world.rank)
        replica = Replica(model)
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.1)
        strategy = parse_strategy(words.split()).build(replica, world, optimizer)
        assert torch.equal(model.convolution.weight, agreed)
        assert torch.equal(model.turned, torch.zeros(2, 3))
        assert model.mask.all() and model.phase == 1j
        assert [tensor.stride() for tensor in (*model.parameters(), *model.buffers())] == before
        state = strategy.state_dict()
        model.mask.zero_()
        model.convolution.weight.zero_()
        strategy.load_state_dict(state)
        assert torch.equal(model.convolution.weight, agreed)
        assert model.mask.all()

    ranks(main)
