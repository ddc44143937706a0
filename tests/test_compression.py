"""Codecs keep their bounds, error feedback loses nothing, and the wire carries the small message."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.compression import CODECS, ErrorFeedback, Moniqua, parse_compression
from hpcasync.compression.codecs import Codec
from hpcasync.errors import UsageError
from hpcasync.reduction import Layout
from hpcasync.replica import Replica
from hpcasync.run import main
from hpcasync.sim import simulate
from hpcasync.strategies import parse_strategy
from hpcasync.world import World
from tests import tiny_job
from tests.training import Vectors, classifier, digits_loss, full_loss, gradient, linear, train

NAMES = ["fp16", "bf16", "int8", "sign", "topk:0.1"]
ALL = [*NAMES, "powersgd:2"]
STRATEGIES = ["sync", "stale", "stale bound=3", "eager"]
lengths = st.one_of(st.integers(1, 40), st.integers(1000, 2100))


def codec(name: str) -> Codec:
    found = parse_compression(name).codec
    assert found is not None
    return found


def vector(length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, generator=generator, dtype=dtype) * 10 ** torch.randn(length, generator=generator)


def through(codec: Codec, v: torch.Tensor) -> torch.Tensor:
    payload = torch.full((codec.payload_bytes(len(v), v.dtype),), 7, dtype=torch.uint8)
    back = torch.full_like(v, torch.nan)
    codec.encode(v, payload)
    codec.decode(payload, back)
    return back


def square(v: torch.Tensor) -> float:
    return float(v.double().square().sum())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(length=lengths, seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_every_codec_is_a_contraction(name, length, seed, dtype):
    v = vector(length, seed, dtype)
    left_out = square(v - through(codec(name), v))
    mine = v.double()
    bounds = {
        "fp16": 2.0**-22,
        "bf16": 2.0**-16,
        "int8": 1024 / 254**2,
        "sign": 1
        - min(b.abs().sum() ** 2 / (len(b) * b.square().sum()) for b in mine.split(1024)).item()
        + 2.0**-48,  # a block's scale is sent as float32
        "topk:0.1": 1 - max(1, round(0.1 * length)) / length,
    }
    smallest = 2.0**-24  # of float16: below, errors are absolute
    assert left_out <= bounds[name] * square(v) * (1 + 1e-6) + length * smallest**2


def test_sign_is_the_mean_magnitude_times_the_sign():
    v = torch.tensor([1.0, -2.0, 0.0, 5.0])
    assert through(codec("sign"), v).tolist() == [2.0, -2.0, 2.0, 2.0]
    assert square(v - through(codec("sign"), v)) == (1 - 8**2 / (4 * 30)) * 30


def test_top_k_keeps_the_largest_as_they_are():
    v = torch.arange(-10.0, 10.0)
    assert through(codec("topk:0.1"), v).nonzero().view(-1).tolist() == [0, 1]
    assert through(codec("topk:1"), v).tolist() == v.tolist()


def test_int8_is_off_by_half_a_level_at_most():
    v = vector(5000)
    for block, back in zip(v.split(1024), through(codec("int8"), v).split(1024), strict=True):
        assert (block - back).abs().max() <= block.abs().max() / 254 * (1 + 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros_and_nan_is_seen(name):
    assert not through(codec(name), torch.zeros(100)).any()
    payload = torch.zeros(codec(name).payload_bytes(100, torch.float32), dtype=torch.uint8)
    back = torch.ones(100)
    codec(name).decode(payload, back)
    assert not back.any()
    broken = torch.ones(100)
    broken[3] = torch.nan
    assert through(codec(name), broken).isnan().any()


def test_what_float16_cannot_hold_waits_in_the_residual():
    feedback = ErrorFeedback(codec("fp16"), torch.zeros(1))
    payload = torch.zeros(2, dtype=torch.uint8)
    feedback.encode(torch.tensor([1e5]), payload)
    assert feedback.residual.tolist() == [1e5 - 65504]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 30), rounds=st.integers(1, 5), seed=st.integers(0, 999))
def test_sent_and_residual_are_what_was_generated(name, length, rounds, seed):
    feedback = ErrorFeedback(codec(name), torch.zeros(length))
    payload = torch.zeros(codec(name).payload_bytes(length, torch.float32), dtype=torch.uint8)
    sent, generated = torch.zeros(2, length, dtype=torch.float64)
    for index in range(rounds):
        v = vector(length, seed + index)
        given_now = v + feedback.residual
        generated += v.double()
        feedback.encode(v, payload)
        part = torch.empty(length)
        codec(name).decode(payload, part)
        sent += part
        if name != "sign":
            assert torch.equal(part.double() + feedback.residual, given_now.double())  # not a bit is lost
    assert torch.allclose(sent + feedback.residual, generated, rtol=0, atol=1e-5 * float(generated.abs().max() + 1))


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 40),
    bits=st.sampled_from([1, 2, 4, 8]),
    theta=st.floats(1e-3, 10),
    seed=st.integers(0, 999),
)
def test_moniqua_reads_a_neighbour_within_theta_to_its_bound(length, bits, theta, seed):
    moniqua = Moniqua(theta, bits)
    x = vector(length, seed, torch.float64)
    y = x + 0.999 * theta * (2 * torch.rand(length, dtype=torch.float64) - 1)
    payload = moniqua.encode(x)
    assert payload.nbytes == -(-length * bits // 8)
    assert (moniqua.decode(payload, y) - x).abs().max() <= moniqua.error * (1 + 1e-9)
    assert moniqua.error == theta * 2 * (0.5 / 2**bits) / (1 - 2 * (0.5 / 2**bits))


def test_moniqua_misreads_a_neighbour_that_is_too_far_away():
    moniqua = Moniqua(1.0)
    x = torch.tensor([5.0])
    assert abs(moniqua.decode(moniqua.encode(x), torch.tensor([0.0])) - x) > 1


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


class Linear(torch.nn.Module):
    """A matrix and a vector, whose gradients are given."""

    def __init__(self, n: int, m: int, b: int) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.zeros(n, m))
        self.vector = torch.nn.Parameter(torch.zeros(b))

    def loss(self, gradient: torch.Tensor) -> torch.Tensor:
        return self.matrix.flatten() @ gradient[: self.matrix.numel()] + self.vector @ gradient[self.matrix.numel() :]


N, M, B = 40, 30, 3


def rank_two(rank: int) -> torch.Tensor:
    """(N M + B,) a gradient whose matrix has rank 2 when summed over any ranks, and a vector."""
    generator = torch.Generator().manual_seed(7)
    left = torch.randn(N, 2, generator=generator)
    right = torch.randn(2, M, generator=generator.manual_seed(rank))
    return torch.cat([(left @ right).flatten(), torch.full((B,), rank + 1.0)])


def stepped(words: str, compress: str | None, world: World, gradient: torch.Tensor, steps: int = 1):
    """(n,) the parameters after 4 steps of lr 1 with this gradient and ``steps`` more; bytes sent in each of these."""
    replica = Replica(model := Linear(N, M, B))
    optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
    strategy = parse_strategy(words.split(), compress).build(replica, world, optimizer)
    for step in range(4 + steps):
        if step == 4:
            before = world.sent_bytes
        model.loss(gradient).backward()
        world.computed(0.0)
        strategy.step()
    sent = (world.sent_bytes - before) / steps
    strategy.drain()
    return strategy.result(), sent


def test_powersgd_sums_matrices_of_its_rank_exactly():
    expected = -5 * sum(rank_two(rank) for rank in range(4)) / 4
    for result, _ in simulate(lambda w: stepped("sync", "powersgd:2", w, rank_two(w.rank)), 4):
        assert torch.allclose(result, expected, rtol=0, atol=1e-3)


def test_powersgd_sends_two_thin_factors():
    """r (n + m) elements per matrix, the vector and the count; an allreduce sends each 2 (4 - 1) / 4 times."""
    elements = 2 * (N + M) + B + 1
    for _, sent in simulate(lambda w: stepped("sync", "powersgd:2", w, rank_two(w.rank), 3), 4):
        assert sent == 1.5 * 4 * elements


@pytest.mark.parametrize("words", ["sync", "stale", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_the_wire_carries_the_small_message(words, name):
    """2 (4 - 1) payloads of a quarter of the vector, each with its count; an allreduce sends 1.5 vectors."""
    steps, piece = 20, -(-(N * M + B) // 4)
    row = -(-(8 + codec(name).payload_bytes(piece, torch.float32)) // 8) * 8
    for _, sent in simulate(lambda w: stepped(words, name, w, rank_two(w.rank), steps), 4):
        if words == "eager":
            assert sent < 1.3 * 6 * row + 150  # a few rounds more than steps; marks, and 2 integers per rank
        else:
            assert sent == 6 * row


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_payloads_is_exchanged(ranks, name):
    """On real ranks too: an all-to-all of a row per rank, and an allgather that brings as many."""

    def main(world: World):
        passed_bytes = []

        def counting(verb):
            return lambda *buffers: (passed_bytes.append(max(b.nbytes for b in buffers)), verb(*buffers))[1]

        replica = Replica(model := Linear(N, M, B))
        optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
        strategy = parse_strategy(["sync"], name).build(replica, world, optimizer)
        for verb in ("allreduce", "iallreduce", "ialltoall", "iallgather"):
            setattr(world, verb, counting(getattr(world, verb)))
        model.loss(rank_two(world.rank)).backward()
        strategy.step()
        row = -(-(8 + codec(name).payload_bytes(-(-(N * M + B) // world.size), torch.float32)) // 8) * 8
        assert passed_bytes == ([world.size * row] * 2 if world.size > 1 else [4 * (N * M + B + 1)])
        strategy.drain()

    ranks(main)


@pytest.mark.parametrize("name", ALL)
def test_what_a_compressed_sum_leaves_out_is_remembered(name):
    """Sent + residuals = generated: of every rank what it gave, and of every owner what it was given."""

    def main(world: World):
        replica = Replica(Linear(N, M, B))
        layout = Layout.of(replica.pairs[0])
        reduction = parse_compression(name).reduction([layout], world.size)
        received, generated = torch.zeros(2, layout.length, dtype=torch.float64)
        for step in range(5):
            message = torch.cat([vector(layout.length, 10 * world.rank + step), torch.ones(1)])
            generated += message[:-1]
            reduction.whole(world, [message])
            assert message[-1] == world.size
            received += message[:-1]
        world.allreduce(generated)
        residual = sum(state.double() for state in _residuals(reduction, world))
        world.allreduce(residual)
        assert torch.allclose(received + residual, generated, rtol=0, atol=1e-4 * float(generated.abs().max()))

    simulate(main, 3)


def _residuals(reduction, world: World) -> list[torch.Tensor]:
    """What this rank has left out of its own gradients, and of the sums that it owns, as vectors."""
    (saved,) = reduction.state_dict()["residuals"]
    length = N * M + B
    if saved.dim() == 1:
        return [saved]
    mine = saved[:-1].reshape(-1)[:length]
    owned = torch.zeros(world.size, saved.shape[1])
    owned[world.rank] = saved[-1]
    return [mine, owned.reshape(-1)[:length]]


@pytest.mark.parametrize("name", NAMES)
def test_downpour_applies_everything_in_the_end(ranks, name):
    """What letters leave out stays with the rank that made it, which sends the last of it as it is."""

    def main(world: World):
        steps = [3 + 4 * ((rank + 1) % world.size) for rank in range(world.size)]
        replica = Replica(model := Vectors((50, 3), (7,)))
        optimizer = torch.optim.SGD(replica.parameters(), lr=1.0)
        strategy = parse_strategy(["downpour", "pull=2"], name).build(replica, world, optimizer)
        train(strategy, model, linear, steps[world.rank])
        strategy.drain()
        generated = sum(gradient(r, s, 157).double() for r in range(world.size) for s in range(steps[r]))
        assert torch.allclose(strategy.result().double(), -generated, rtol=1e-5, atol=1e-3)

    ranks(main, compute="exponential")


@pytest.mark.parametrize("name", NAMES)
def test_downpour_pushes_small_letters(name):
    """A letter to each of 3 owners; beside them travel marks: 16 bytes per letter, and 16 to and from rank 0."""
    letters = 3 * codec(name).payload_bytes(-(-(N * M + B) // 4), torch.float32)
    for _, sent in simulate(lambda w: stepped("downpour pull=1000", name, w, rank_two(w.rank), 10), 4):
        assert sent <= letters + 3 * 16 + 3 * 16
    for _, sent in simulate(lambda w: stepped("downpour pull=1000", None, w, rank_two(w.rank), 10), 4):
        assert sent >= 3 * 4 * ((N * M + B) // 4)


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


@pytest.mark.parametrize(("theta", "bits", "message"), [(1.0, 3, "bits=3: "), (0.0, 8, "theta=0.0: ")])
def test_moniqua_refuses_what_makes_no_sense(theta, bits, message):
    with pytest.raises(UsageError, match=message):
        Moniqua(theta, bits)


def test_every_codec_has_a_name():
    assert {parse_compression(text).name for text in ALL} == set(CODECS)


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
