"""Codecs keep their bounds, and error feedback loses nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.compression import CODECS, ErrorFeedback, Moniqua, parse_compression
from hpcasync.compression.codecs import Codec
from hpcasync.errors import UsageError
from tests.compressed import ALL, NAMES, codec, vector

lengths = st.one_of(st.integers(1, 40), st.integers(1000, 2100))


def through(codec: Codec, v: torch.Tensor) -> torch.Tensor:
    payload = torch.full((codec.payload_bytes(len(v), v.dtype),), 7, dtype=torch.uint8)
    back = torch.full_like(v, torch.nan)
    codec.encode(v, payload)
    codec.decode(payload, back)
    return back


def square(v: torch.Tensor) -> float:
    return float(v.double().square().sum())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
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
@settings(max_examples=30)
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


@settings(max_examples=50)
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


@pytest.mark.parametrize(("theta", "bits", "message"), [(1.0, 3, "bits=3: "), (0.0, 8, "theta=0.0: ")])
def test_moniqua_refuses_what_makes_no_sense(theta, bits, message):
    with pytest.raises(UsageError, match=message):
        Moniqua(theta, bits)


def test_every_codec_has_a_name():
    assert {parse_compression(text).name for text in ALL} == set(CODECS)
