"""Checkpoints on disk: what is read is what was written, and what is damaged is not read."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.run.checkpoint import complete, describe, latest, read_rank, write_rank

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
states = st.dictionaries(
    st.text(),
    st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner), max_leaves=12
    ),
    max_size=4,
)


def checkpoint(run: Path, step: int, *states: dict[str, Any]) -> Path:
    checksums: dict[str, str] = {}
    for rank, state in enumerate(states):
        checksums |= write_rank(run, step, rank, state)
    return complete(run, step, range(len(states)), checksums)


@given(states)
def test_any_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    folder = checkpoint(tmp_path_factory.mktemp("run"), 3, state)
    assert read_rank(folder, 0) == state


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    ],
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(-3, 9).view(3, 4).to(dtype)
    shared = {"whole": tensor, "part": [tensor[1], tensor.t()], "scalar": tensor[0, 0], "empty": tensor[:0]}
    read = read_rank(checkpoint(tmp_path, 0, shared), 0)
    assert torch.equal(read["whole"], tensor)
    assert torch.equal(read["part"][0], tensor[1])
    assert torch.equal(read["part"][1], tensor.t())
    assert torch.equal(read["scalar"], tensor[0, 0])
    assert read["empty"].shape == (0, 4)
    assert {each.dtype for each in (read["whole"], *read["part"], read["scalar"])} == {dtype}


def test_an_optimizer_goes_on_from_its_state(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.tensor([1.0, 2.0, math.inf])
    optimizer.step()
    state = read_rank(checkpoint(tmp_path, 1, {"optimizer": optimizer.state_dict()}), 0)["optimizer"]
    fresh = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.5)
    fresh.load_state_dict(state)
    assert fresh.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(fresh.state_dict()["state"][0][name], value)


def test_what_it_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.a\.1: a checkpoint cannot hold a set"):
        write_rank(tmp_path, 0, 0, {"a": [1, {2}]})


def test_the_newest_whole_one_counts_and_the_last_two_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    folders = [checkpoint(tmp_path, step, {"step": step}, {"step": step}) for step in (9, 10, 200)]
    assert not folders[0].exists()
    assert latest(tmp_path) == folders[2]
    assert describe(folders[2]) == (200, [0, 1])
    assert stat.S_IMODE(folders[2].stat().st_mode) == 0o700
    with (folders[2] / "rank1.safetensors").open("ab") as file:
        file.write(b"\0")
    assert latest(tmp_path) == folders[1]
    (folders[1] / "rank0.json").unlink()
    assert latest(tmp_path) is None


def test_one_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    first = checkpoint(tmp_path, 5, {"a": 1})
    write_rank(tmp_path, 6, 0, {"a": 2})
    assert latest(tmp_path) == first
    write_rank(tmp_path, 6, 7, {"a": 2})  # of a world that had more ranks
    second = checkpoint(tmp_path, 6, {"a": 3})
    assert latest(tmp_path) == second
    assert len(list(second.iterdir())) == 3
    assert read_rank(checkpoint(tmp_path, 6, {"a": 4}), 0) == {"a": 4}  # the same step once more


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "x"}', b'{"schema": "hpcasync.checkpoint/1"}'])
def test_a_broken_table_of_checksums_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (checkpoint(tmp_path, 1, {}) / "checkpoint.json").write_bytes(content)
    assert latest(tmp_path) is None


def test_what_a_link_leads_to_is_never_written_or_removed(tmp_path: Path) -> None:
    precious = tmp_path / "elsewhere" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("keep me")
    run = tmp_path / "run"
    (run / "ckpt" / ".2").mkdir(parents=True)
    (run / "ckpt" / ".2" / "rank0.json").symlink_to(precious)  # what a rank is to write
    (run / "ckpt" / ".2" / "other").symlink_to(precious.parent)  # what is left over
    (run / "ckpt" / "2").symlink_to(precious.parent)  # the checkpoint that is replaced
    for step in (0, 1):  # what is removed, being older than the last two
        (run / "ckpt" / str(step)).symlink_to(precious.parent)
    folder = checkpoint(run, 2, {"a": 1})
    assert not folder.is_symlink() and read_rank(folder, 0) == {"a": 1}
    assert sorted(path.name for path in (run / "ckpt").iterdir()) == ["1", "2"]
    (run / "ckpt" / ".3").symlink_to(precious.parent)
    with pytest.raises(UsageError, match=r"ckpt/\.3 is a link or a file"):
        checkpoint(run, 3, {"a": 2})
    assert precious.read_text() == "keep me"
    assert list(precious.parent.iterdir()) == [precious]


def test_only_what_was_begun_as_a_checkpoint_is_removed(tmp_path: Path) -> None:
    hidden = tmp_path / "ckpt" / ".hidden"
    hidden.mkdir(parents=True)
    (tmp_path / "ckpt" / ".7").mkdir()
    checkpoint(tmp_path, 8, {})
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == [".hidden", "8"]


def test_a_rank_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1, {})
    with pytest.raises(UsageError, match="the state of rank 1 cannot be read"):
        read_rank(folder, 1)
    (folder / "rank0.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="the state of rank 0 cannot be read"):
        read_rank(folder, 0)
