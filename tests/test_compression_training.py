"""Strategies that send compressed messages learn, agree and go on after a restart; what cannot be used is said."""

from __future__ import annotations

import json

import pytest
import torch

from hpcasync.compression import Moniqua
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.run import main
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.world import World
from tests import tiny_job
from tests.compressed import ALL
from tests.training import classifier, digits_loss, full_loss, train

STRATEGIES = ["sync", "stale", "stale bound=3", "eager"]


@pytest.mark.parametrize("theta", [0.5, 8.0])
def test_gossip_through_moniqua_keeps_the_sum_and_comes_within_its_error_of_the_mean(ranks, theta):
    """Without gradients: rank r begins at r / 8, so neighbours differ by less than 1/2 for up to 4 ranks."""

    def main(world: World):
        replica = Replica(torch.nn.Linear(30, 10).double())
        optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
        strategy = parse_strategy(["dpsgd", "peers=exponential"], f"moniqua:{theta}").build(replica, world, optimizer)
        with torch.no_grad():
            replica.params.fill_(world.rank / 8)
        world.barrier()
        before = getattr(world, "sent_bytes", 0)  # MPI does not tell
        for _ in range(12):
            strategy.step()
        sent = getattr(world, "sent_bytes", 0) - before
        mean = (world.size - 1) / 16
        assert (replica.params - mean).abs().max() <= 2 * Moniqua(theta).error + 1e-12
        total = replica.params.detach().clone()
        world.allreduce(total)
        assert torch.allclose(total, torch.full_like(total, world.size * mean), rtol=0, atol=1e-12)
        strategy.drain()
        return sent

    elements, counts, neighbours = 310, 3, 2
    for sent in ranks(main):
        assert sent <= 12 * neighbours * (elements + 8 * 2 * counts)  # a byte per element; 8 in plain float64


def trained(words: str, compress: str | None, world: World, steps: int, loss=digits_loss, model=None, lr=0.05):
    model = model or classifier()
    replica = Replica(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=lr, fused=True)
    strategy = parse_strategy(words.split(), compress).build(replica, world, optimizer)
    train(strategy, model, loss, steps)
    strategy.drain()
    return strategy, model


@pytest.mark.parametrize(
    ("words", "compress"),
    [
        *(("sync", compress) for compress in ALL),
        ("stale", "powersgd:2"),
        ("stale bound=3", "topk:0.1"),
        ("eager", "sign"),
        ("downpour", "topk:0.1"),
        ("downpour", "sign"),
        ("local_sgd period=3", "int8"),
        ("cocod period=4 delay=4", "powersgd:2"),
        ("dpsgd", "moniqua:0.5"),
    ],
)
def test_learns_digits_compressed(words, compress):
    def main(world: World):
        strategy, model = trained(words, compress, world, 100, lr=0.05 if words == "downpour" else 0.2)
        return full_loss(strategy, model)

    assert max(simulate(main, 3, compute="exponential")) < 1.3


@pytest.mark.parametrize("compress", ALL)
def test_ranks_agree_compressed(ranks, compress):
    def main(world: World):
        for words in STRATEGIES:
            strategy, _ = trained(words, compress, world, 5 + world.rank)
            mine = strategy.result()
            root = mine.clone()
            world.broadcast(root)
            assert torch.equal(root, mine)
            assert mine.isfinite().all()

    ranks(main, compute="exponential")


@pytest.mark.parametrize("words", [*STRATEGIES, "downpour", "streaming_diloco period=4 fragments=2 delay=2", "dpsgd"])
@pytest.mark.parametrize("name", ["topk:0.1", "powersgd:2"])
def test_a_restored_strategy_goes_on_identically(words, name):
    if words in ("downpour", "dpsgd") and name == "powersgd:2":
        return
    name = "moniqua:0.5" if words == "dpsgd" else name

    def build(world: World):
        model = classifier()
        replica = Replica(model)
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.1, momentum=0.9, fused=True)
        return parse_strategy(words.split(), name).build(replica, world, optimizer), model

    def whole(world: World):
        strategy, model = build(world)
        train(strategy, model, digits_loss, 8)
        state = strategy.state_dict()
        world.barrier()
        train(strategy, model, digits_loss, 8, first=8)
        strategy.drain()
        return state, strategy.result()

    before = simulate(whole, 3, compute="sqrt")

    def resumed(world: World):
        strategy, model = build(world)
        strategy.load_state_dict(before[world.rank][0])
        world.barrier()
        train(strategy, model, digits_loss, 8, first=8)
        strategy.drain()
        return strategy.result()

    after = simulate(resumed, 3, compute="sqrt")
    assert all(torch.equal(a[1], b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        ("sync", "zip", "--compress zip: the known ones are fp16, bf16, int8, sign, topk:SHARE, powersgd:RANK"),
        ("sync", "topk", "--compress topk: the known ones are "),
        ("sync", "fp16:2", "--compress fp16:2: the known ones are "),
        ("sync", "topk:0", "--compress topk:0: '0' is no share of the elements; write for example topk:0.01"),
        ("sync", "topk:x", "--compress topk:x: 'x' is no share of the elements"),
        ("sync", "powersgd:0", "--compress powersgd:0: '0' is no rank; write for example powersgd:2"),
        ("dpsgd", "moniqua:0", "--compress moniqua:0: '0' is no bound on what two neighbours differ by; write for"),
        ("dpsgd", "moniqua:x", "--compress moniqua:x: 'x' is no bound on what two neighbours differ by"),
        ("dpsgd", "int8", "--compress int8: strategy dpsgd takes moniqua"),
        ("sync", "moniqua:1", "--compress moniqua:1: strategy sync takes fp16, bf16, int8, sign, topk, powersgd"),
        ("hogwild", "int8", "--compress int8: strategy hogwild sends nothing compressed; these can: sync, "),
        ("downpour", "powersgd:2", "--compress powersgd:2: strategy downpour takes fp16, bf16, int8, sign, topk"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(words, text, message):
    with pytest.raises(UsageError) as error:
        parse_strategy([words], text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_job_takes_the_option(tmp_path, capsys):
    def run(*words: str) -> int:
        argv = ["--world", "sim", "--steps", "3", "--results", str(tmp_path), "--name", "run", *words]
        with pytest.raises(SystemExit) as end:
            main(tiny_job.train, tiny_job.Tiny, argv)
        return end.value.code

    assert run("--compress", "zip") == 2
    assert run("--strategy", "hogwild", "--compress", "int8") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("hpcasync: error: --compress zip: the known ones are fp16, ")
    assert second.startswith("hpcasync: error: --compress int8: strategy hogwild sends nothing compressed; ")
    assert not list(tmp_path.iterdir())
    assert run("--compress", "int8") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["compress"] == "int8"
