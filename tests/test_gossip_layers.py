"""LayUp: gossip of one bucket of layers at a time, inside backward()."""

from __future__ import annotations

import pytest
import torch

from hpcasync.sim import simulate
from hpcasync.world import World
from tests.training import Vectors, build, gradient, linear, train


def test_layup_sends_each_bucket_while_backward_still_runs(monkeypatch):
    sent = []

    def main(world: World):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        strategy = build("layup bucket_bytes=1", world, model, lr=0.1)
        send = strategy._push_sum.send

        def noted(part, peers):
            complete = [type(p.grad) is torch.Tensor and bool(p.grad.any()) for p in model.parameters()]
            sent.append((part, complete))  # a gradient that has been sent is none any more
            send(part, peers)

        strategy._push_sum.send = noted
        model(torch.ones(1, 3)).sum().backward()
        sent.append("backward is over")
        strategy.step()
        return [bucket.elements for bucket in strategy._buckets]

    assert simulate(main, 1)[0] == [2, 8, 4, 12]
    assert [each[0] for each in sent[:4]] == [0, 1, 2, 3]
    assert sent[0][1] == [False, False, False, True]
    assert sent[4] == "backward is over"


def test_layup_keeps_the_mass_of_every_bucket():
    strategies = {}

    def main(world: World):
        model = Vectors((4,), (5,), (3,), dtypes=(torch.float64,))
        strategies[world.rank] = strategy = build("layup bucket_bytes=8", world, model, lr=0.5)
        train(strategy, model, linear, 20 + 5 * world.rank)
        world.barrier()

    simulate(main, 4, compute="exponential", alpha=0.1)
    made = sum(gradient(rank, step, 12) for rank in range(4) for step in range(20 + 5 * rank)).double()
    for part, bucket in enumerate(strategies[0]._buckets):
        total = sum(
            s._push_sum._memories[part] + s._push_sum._inboxes[part]._parts[rank].memory
            for rank, s in strategies.items()
        )
        expected = -0.5 * made[bucket.start_element : bucket.stop_element]
        assert torch.allclose(total[:-1], expected, atol=1e-12, rtol=0)
        assert float(total[-1]) == pytest.approx(4.0, abs=1e-12)
