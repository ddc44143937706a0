"""Habits from plain PyTorch: every strategy trains what plain PyTorch would, or says in one line that it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.sim import simulate
from hpcasync.strategies import STRATEGIES, parse_strategy
from hpcasync.strategies.basgd import Basgd
from hpcasync.strategies.hogwild import Hogwild
from hpcasync.strategies.neuron import Neuron
from hpcasync.world import World

# on one rank not plain SGD, for a delay, an optimizer, a center or an order of their own
NOT_PLAIN = (
    *("stale", "downpour_adagrad", "dana", "easgd", "eamsgd", "slowmo", "diloco", "streaming_diloco"),
    *("delayed_nesterov", "dylu", "halos", "neuron_cyclic", "asyscd", "gauss_southwell"),
)
# whoever cannot keep what a script changes in weights
REFUSE = ("eager", "solo", "basgd", "neuron", "neuron_cyclic", "asyscd", "gauss_southwell")
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


class Net(nn.Module):
    """Two layers and a BatchNorm, a frozen teacher of the first, and buffers that scripts replace."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(12, 3)
        self.teacher = copy.deepcopy(self.first).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("batches", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(F.relu(self.norm(hidden + 0.1 * self.teacher(x))).flatten(1))


@dataclass
class Script:
    """What a habit may touch, and the step it is in."""

    model: Net
    optimizer: torch.optim.Optimizer
    rank: int = 0
    step: int = 0


Habit = tuple[str, str, Callable[[Script], object]]  # a name, where in the loop, and what the script does there


def loop(script: Script, step: Callable[[], None], habits: Sequence[Habit | None]) -> None:
    """Steps with one habit each, so that none hides what another has done."""

    def at(here: str) -> None:
        habit = habits[script.step]
        if habit is not None and habit[1] == here:
            habit[2](script)

    for script.step in range(len(habits)):
        at("before forward")
        generator = torch.Generator().manual_seed(1000 * script.rank + script.step)
        x, y = torch.randn(4, 2, 3, 3, generator=generator), torch.randint(0, 3, (4,), generator=generator)
        loss = F.cross_entropy(script.model(x), y)
        at("before backward")
        loss.backward()
        at("before step")
        step()
        at("after step")


def trained(name: str, size: int, habits: Sequence[Habit | None], by_tensor: bool = False) -> Tensor:
    """What the strategy delivers, with the frozen and the integer ones of rank 0 behind it."""

    def main(world: World) -> Tensor:
        model = Net()
        replica = Replica(model)
        parameters = model.parameters() if by_tensor else replica.parameters()
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.5)
        strategy = parse_strategy([name]).build(replica, world, optimizer)

        def step() -> None:
            world.computed(1.0)
            strategy.step()

        loop(Script(model, optimizer, world.rank), step, habits)
        strategy.drain()
        return torch.cat([strategy.result(), *outside(model)])

    return simulate(main, size, compute="exponential")[0]


def plain(habits: Sequence[Habit | None]) -> Tensor:
    """The same with plain PyTorch on one rank. After a step, gradients are zeros, as a strategy leaves them."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    loop(Script(model, optimizer), step, habits)
    return torch.cat([Replica(model).vector(), *outside(model)])


def outside(model: Net) -> list[Tensor]:
    """What is on no vector."""
    return [model.teacher.weight.flatten(), model.teacher.bias, model.batches]


def zero(owner: str, set_to_none: bool) -> Callable[[Script], object]:
    return lambda script: getattr(script, owner).zero_grad(set_to_none=set_to_none)


def forget_by_hand(script: Script) -> None:
    for p in script.model.parameters():
        p.grad = None


def reassign_data(script: Script) -> None:
    for p in script.model.parameters():
        p.data = p.data.clone()


def replace_buffers(script: Script) -> None:
    script.model.seen = script.model.seen.clone()
    script.model.norm.running_mean = script.model.norm.running_mean.clone()
    script.model.batches = script.model.batches.clone()


def clamp(script: Script) -> None:
    with torch.no_grad():
        for p in script.model.last.parameters():
            p.clamp_(-0.1, 0.1)


def clamp_data(script: Script) -> None:
    for p in script.model.last.parameters():
        p.data.clamp_(-0.08, 0.08)


def other_data(script: Script) -> None:
    script.model.first.weight.data = script.model.first.weight.data * 0.9


def teach(script: Script) -> None:
    with torch.no_grad():
        for teacher, student in zip(script.model.teacher.parameters(), script.model.first.parameters(), strict=True):
            teacher.mul_(0.5).add_(student, alpha=0.5)


def other_buffers(script: Script) -> None:
    script.model.seen = script.model.seen + 3
    script.model.norm.running_mean = 0.5 * script.model.norm.running_mean
    script.model.batches = script.model.batches + 1


def pollute(script: Script) -> None:
    """Gradients of another loss, which are not wanted."""
    script.model(torch.ones(4, 2, 3, 3)).square().sum().backward()


def pollute_and_zero(owner: str, set_to_none: bool) -> Callable[[Script], object]:
    def act(script: Script) -> None:
        pollute(script)
        zero(owner, set_to_none)(script)

    return act


def clip(script: Script) -> None:
    nn.utils.clip_grad_norm_(script.model.parameters(), 0.1)


def scale_grads(script: Script) -> None:
    for p in script.model.parameters():
        if p.grad is not None:
            p.grad.mul_(0.5)


def assign_grads(script: Script) -> None:
    for p in script.model.parameters():
        if p.grad is not None:
            p.grad = p.grad * 2


def replace_grad_data(script: Script) -> None:
    script.model.last.bias.grad.data = script.model.last.bias.grad.data * 3


# what changes nothing in plain PyTorch
NEUTRAL: list[Habit] = [
    *(
        (f"{owner}.zero_grad({set_to_none})", place, zero(owner, set_to_none))
        for owner in ("optimizer", "model")
        for set_to_none in (True, False)
        for place in ("before forward", "before backward", "after step")
    ),
    ("p.grad = None", "before backward", forget_by_hand),
    ("p.data = p.data.clone()", "after step", reassign_data),
    ("buffers replaced by equal ones", "after step", replace_buffers),
]
# what changes weights and buffers
CHANGES: list[Habit] = [
    ("clamp_", "after step", clamp),
    ("data.clamp_", "after step", clamp_data),
    ("p.data = x", "before forward", other_data),
    ("to(channels_last)", "before forward", lambda script: script.model.to(memory_format=torch.channels_last)),
    ("EMA teacher", "after step", teach),
    ("buffers replaced", "after step", other_buffers),
]
# what changes gradients
GRADIENTS: list[Habit] = [
    *(
        (
            f"{owner}.zero_grad({set_to_none}) after another backward()",
            "before forward",
            pollute_and_zero(owner, set_to_none),
        )
        for owner in ("optimizer", "model")
        for set_to_none in (True, False)
    ),
    ("clip_grad_norm_", "before step", clip),
    ("p.grad.mul_", "before step", scale_grads),
    ("p.grad = g", "before step", assign_grads),
    ("p.grad.data = g", "before step", replace_grad_data),
    ("zero_grad before step()", "before step", zero("optimizer", False)),
    ("model.zero_grad before step()", "before step", zero("model", False)),
]


def interleaved(habits: Sequence[Habit]) -> list[Habit | None]:
    """A step without a habit behind each with one: there a gradient that went astray is missed."""
    return [each for habit in habits for each in (habit, None)]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-5)


@every_strategy
def test_habits_that_change_nothing_change_nothing(name):
    habits = interleaved(NEUTRAL)
    if issubclass(
        STRATEGIES[name].cls, Hogwild
    ):  # one memory: a rank that assigns old values takes back others' updates
        habits = [habit for habit in habits if habit is None or not habit[0].startswith("p.data")]
    assert torch.equal(trained(name, 2, habits), trained(name, 2, [None] * len(habits)))


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in NOT_PLAIN])
def test_one_rank_trains_what_plain_pytorch_trains(name):
    cls = STRATEGIES[name].cls
    habits = interleaved([*([] if cls is Basgd else CHANGES), *([] if cls.sends_in_backward else GRADIENTS)])
    assert close(trained(name, 1, habits), plain(habits))


@pytest.mark.parametrize(
    "name", [name for name, entry in STRATEGIES.items() if not entry.cls.replicated or name in REFUSE]
)
def test_a_weight_that_one_rank_of_two_changes(name):
    """By 8: for both where parameters are shared, by 4 in the mean of two replicas, by its weight in push-sum."""

    def grow(script: Script) -> None:
        if script.rank == 0:
            script.model.last.bias.data += 8

    habits = [None, ("grow", "after step", grow), None, None, None]
    if name in REFUSE:
        with pytest.raises(UsageError, match="the script has changed weights between two steps"):
            trained(name, 2, habits)
        return
    moved = trained(name, 2, habits) - trained(name, 2, [None] * 5)
    assert 0.5 < float(moved.abs().max()) < 9, moved


@every_strategy
def test_an_optimizer_of_the_models_own_parameters(name):
    habits = [None] * 6
    if STRATEGIES[name].cls is Neuron:
        with pytest.raises(UsageError, match=r"neuron needs an optimizer of replica.parameters\(\)"):
            trained(name, 2, habits, by_tensor=True)
        return
    assert close(trained(name, 2, habits, by_tensor=True), trained(name, 2, habits))


@pytest.mark.parametrize("name", [name for name, entry in STRATEGIES.items() if entry.cls.sends_in_backward])
@pytest.mark.parametrize(
    "habit", [habit for habit in GRADIENTS if habit[1] == "before step"], ids=lambda habit: habit[0]
)
def test_gradients_that_have_left_cannot_be_touched(name, habit):
    with pytest.raises(UsageError, match=r"between backward\(\) and step\(\)"):
        trained(name, 1, [habit])


def forward_once(*changes: Callable[[Net], object], strategy: str = "sync") -> None:
    """One step after ``changes`` of the model behind Replica(model)."""

    def main(world: World) -> None:
        model = Net()
        replica = Replica(model)
        built = parse_strategy([strategy]).build(replica, world, torch.optim.SGD(replica.parameters(), lr=0.1))
        for change in changes:
            change(model)
        built.step()

    simulate(main, 1)


def new_head(model: Net) -> None:
    model.last = nn.Linear(12, 3)


def new_parameter(model: Net) -> None:
    model.last.weight = nn.Parameter(torch.ones(3, 12))


REFUSED: list[tuple[str, Callable[[Net], object], str]] = [
    ("new head", new_head, "last.weight is a parameter that Replica.model. does not know"),
    ("new parameter", new_parameter, "last.weight is a parameter that Replica.model. does not know"),
    ("unfrozen", lambda model: model.teacher.requires_grad_(True), "teacher.weight is a parameter that"),
    ("added", lambda model: model.add_module("extra", nn.Linear(2, 2)), "extra.weight is a parameter that"),
    ("double", lambda model: model.double(), "is float64"),
    (
        "another shape",
        lambda model: setattr(model.last.weight, "data", torch.ones(3, 4)),
        r"last.weight is float32 \(3, 4\)",
    ),
    ("new buffer", lambda model: model.register_buffer("new", torch.ones(2)), "buffer new is new since"),
    ("longer buffer", lambda model: setattr(model, "seen", torch.ones(2)), r"seen is float32 \(2,\)"),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
@pytest.mark.parametrize("strategy", ["sync", "in_backward"])
def test_a_model_that_is_another_one_is_refused(change, message, strategy):
    with pytest.raises(UsageError, match=message):
        forward_once(change, strategy=strategy)


def test_a_cache_of_forward_is_nobodys_business():
    forward_once(lambda model: model.register_buffer("cache", torch.ones(2), persistent=False))


def held_by(
    parameters: Callable[[Net, Replica], list[Tensor]], name: str = "sync", kind: Any = torch.optim.SGD
) -> None:
    def main(world: World) -> None:
        model = Net()
        replica = Replica(model)
        parse_strategy([name]).build(replica, world, kind(parameters(model, replica), lr=0.1))

    simulate(main, 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (lambda model, replica: [nn.Parameter(torch.ones(2, 7))], "does not hold first.weight"),
        (lambda model, replica: [*model.last.parameters()], "does not hold first.weight"),
        (lambda model, replica: [*replica.parameters(), nn.Parameter(torch.ones(2, 7))], r"shape \(2, 7\)"),
        (lambda model, replica: [*replica.parameters(), *model.parameters()], "hand it one of them"),
    ],
)
@pytest.mark.parametrize("name", ["sync", "sgp", "server"])
def test_an_optimizer_of_other_parameters_is_refused(name, parameters, message):
    with pytest.raises(UsageError, match=message):
        held_by(parameters, name)


@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.LBFGS])
def test_an_optimizer_that_cannot_step_is_refused(kind):
    with pytest.raises(UsageError, match=f"{kind.__name__} cannot be used"):
        held_by(lambda model, replica: replica.parameters(), kind=kind)


@every_strategy
def test_sparse_gradients_become_dense(name):
    """With Adagrad, whose state exists from birth."""

    def result(world: World, sparse: bool, zero_grad: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 2))
        replica = Replica(model)
        kind = torch.optim.SGD if name == "dana" else torch.optim.Adagrad
        strategy = parse_strategy([name]).build(replica, world, kind(replica.parameters(), lr=0.1))
        for step in range(3):
            loss = model(torch.tensor([step, world.rank, 5])).square().sum()
            if zero_grad:
                model.zero_grad()
            loss.backward()
            world.computed(1.0)
            strategy.step()
        strategy.drain()
        return strategy.result()

    def run(*how: bool) -> Tensor:
        return simulate(lambda world: result(world, *how), 2, compute="exponential")[0]

    expected = run(False, False)
    assert torch.equal(run(True, False), expected)
    assert torch.equal(run(True, True), expected)


@pytest.mark.parametrize("name", ["sync", "hogwild", "eager"])
def test_clipping_the_flat_gradient_after_the_model_has_forgotten_its_own(name):
    def clip_flat(script: Script) -> None:
        nn.utils.clip_grad_norm_([p for group in script.optimizer.param_groups for p in group["params"]], 1.0)

    def forget_and_clip(script: Script) -> None:
        script.model.zero_grad()
        script.model(torch.ones(4, 2, 3, 3)).sum().backward()
        clip_flat(script)

    with pytest.raises(UsageError, match=r"model.zero_grad\(\) has taken them from there"):
        trained(name, 1, [("forget", "after step", forget_and_clip), None])
    trained(name, 1, [("clip", "before step", clip_flat), None])
