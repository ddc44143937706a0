"""How many samples a batch holds, however the loader packs it."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from hpcasync.errors import UsageError
from hpcasync.run.feed import samples_in
from tests.test_run import lines, simulate

X = torch.zeros(7, 3)
Named = namedtuple("Named", "count x")


@dataclass
class Graphs:
    name: str
    nodes: torch.Tensor


@pytest.mark.parametrize(
    "batch",
    [
        X,
        np.zeros((7, 3)),
        (X, torch.zeros(5)),
        [np.zeros(7), 1],
        {"text": ["hello"] * 3, "x": X},
        UserDict({"input_ids": X}),
        {"outer": {"inner": [X]}},
        Named(3, X),
        Graphs("molecules", X),
        ("a text first", 3, torch.tensor(2.0), X),
    ],
)
def test_the_first_array_with_a_batch_dimension_counts(batch: Any) -> None:
    assert samples_in(batch) == 7


@pytest.mark.parametrize(
    ("batch", "kind"),
    [("hello", "str"), ({"text": ["hello"]}, "dict"), (torch.tensor(1.0), "Tensor"), (3, "int"), ([], "list")],
)
def test_a_batch_that_does_not_tell_is_named_by_its_type(batch: Any, kind: str) -> None:
    with pytest.raises(UsageError, match=rf"a batch of type {kind}\? .*run\.step\(loss, samples=\.\.\.\)"):
        samples_in(batch)


@pytest.mark.parametrize(("samples", "expected"), [(5, [5, 10]), (0, [0, 0]), (None, [32, 64])])
def test_a_job_may_say_the_number(samples: int | None, expected: list[int], tmp_path: Any) -> None:
    words = [] if samples is None else ["--samples", str(samples)]
    code, folder = simulate(tmp_path, "--ranks", "2", "--steps", "2", *words)
    assert code == 0
    assert [line["samples"] for line in lines(folder, 1) if "loss" in line] == expected


def test_a_negative_number_is_refused(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(tmp_path, "--samples", "-1")[0] == 2
    assert "run.step(loss, samples=-1): it must be 0 or more" in capsys.readouterr().err
