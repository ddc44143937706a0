"""Checkpoints and run.json after damage: never a traceback, never steps that are lost in silence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hpcasync.launch.execute import REQUEUE
from hpcasync.run import provenance
from tests.small_job import attempt, codes

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.timeout(120)]

RANKS = 2
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sync, stopped twice: it has two checkpoints, of steps 5 and 8."""
    folder = tmp_path_factory.mktemp("results") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "git", lambda folder: None)
        patch.setattr(provenance, "packages", dict)
        for step in (3, 6):
            assert codes(attempt(folder, "sync", ranks=RANKS, stop={0: step, 1: step})) == {REQUEUE}
    assert steps(folder) == [5, 8]
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return copy(stopped, tmp_path)


def copy(stopped: Path, where: Path) -> Path:
    return Path(shutil.copytree(stopped, where / "run", symlinks=True))


def steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "ckpt").iterdir())


def go_on(run: Path, *, restart: bool = False) -> int:
    """The exit code of --resume."""
    try:
        (code,) = codes(attempt(run, "sync", ranks=RANKS, restart=restart))
    except SystemExit as end:  # as main() ends a simulation in which a rank has failed
        return int(str(end.code))
    return code


def begun(run: Path) -> list[int]:
    """The steps after which the run's attempts began."""
    return [each["step"] for each in json.loads((run / "run.json").read_text())["attempts"]]


def content(path: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}


def reseal(folder: Path) -> None:
    """Have the checksums of what is there."""
    document = json.loads((folder / "checkpoint.json").read_text())
    document["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in document["sha256"]}
    (folder / "checkpoint.json").write_text(json.dumps(document))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def link(path: Path) -> None:
    away = path.parents[2] / "away"
    path.rename(away)
    path.symlink_to(away)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def edit(**entries: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "checkpoint.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: flip(folder / "rank0.safetensors"), "rank0.safetensors is not what was written"),
    (lambda folder: flip(folder / "rank1.json"), "rank1.json is not what was written"),
    (lambda folder: os.truncate(folder / "rank1.safetensors", 10), "rank1.safetensors is not what was written"),
    (lambda folder: (folder / "rank0.json").unlink(), "rank0.json: No such file or directory"),
    (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json: No such file or directory"),
    (lambda folder: (folder / "checkpoint.json").write_text(""), "checkpoint.json is no JSON"),
    (lambda folder: (folder / "checkpoint.json").write_text(DEEP), "it is nested too deeply"),
    (lambda folder: (folder / "checkpoint.json").write_text("{}"), "no 'schema'"),
    (lambda folder: (folder / "checkpoint.json").write_text("[]"), "list indices must be integers"),
    (edit(schema="hpcasync.checkpoint/1"), "checkpoint.json has the schema hpcasync.checkpoint/1"),
    (edit(step=-5), "checkpoint.json is of step -5"),
    (edit(step=1e400), "checkpoint.json is of step inf"),
    (edit(step=8.0), "checkpoint.json is of step 8.0"),
    (edit(members=["a", "b"]), "checkpoint.json has members ['a', 'b']"),
    (edit(members=[0, 0]), "checkpoint.json has members [0, 0]"),
    (edit(members=[]), "checkpoint.json has members []"),
    (edit(members=None), "checkpoint.json has members None"),
    (edit(sha256={"../../x": "", "/etc/x": ""}), "checkpoint.json names other files"),
    (lambda folder: link(folder / "rank0.json"), "rank0.json is no regular file"),
    (lambda folder: link(folder), "it is no folder"),
    (lambda folder: pipe(folder / "rank0.json"), "rank0.json is no regular file"),
    (lambda folder: pipe(folder / "checkpoint.json"), "checkpoint.json is no regular file"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[reason for _, reason in DAMAGES])
def test_the_older_one_is_used_and_said_to_be(
    run: Path, damage: Callable[[Path], Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(run / "ckpt" / "8")
    capfd.readouterr()
    assert go_on(run) == 0
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("hpcasync: ")]
    assert warning.startswith(f"hpcasync: warning: {run.resolve()}/ckpt: damaged checkpoint 8 ({reason}")
    assert warning.endswith("; going on from 5, 3 steps of rank 0 are lost")
    assert begun(run) == [0, 5, 5]
    assert os.path.lexists(run / "attempt-1" / "8")  # it takes no newer one's place


def test_a_folder_with_another_ones_name_is_damaged(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "ckpt" / "5").rename(run / "ckpt" / ("1" + 23 * "0"))
    assert go_on(run) == 0
    assert "(checkpoint.json is of step 5); going on from 8" in capfd.readouterr().err
    assert begun(run) == [0, 5, 8]


@pytest.mark.parametrize("damage", [
    lambda run: swap(run / "ckpt" / "5", run / "ckpt" / "8"),
    lambda run: swap(run / "ckpt" / "5" / "rank0.json", run / "ckpt" / "8" / "rank0.json"),
    lambda run: [os.truncate(path, 7) for path in run.glob("ckpt/*/*.json")],
    lambda run: [shutil.rmtree(path) or path.touch() for path in run.glob("ckpt/*")],
], ids=["folders swapped", "files swapped", "truncated", "files"])  # fmt: skip
def test_without_a_whole_one_nothing_begins_again_unasked(
    run: Path, damage: Callable[[Path], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    before = content(run)
    capfd.readouterr()
    assert go_on(run) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(f"hpcasync: error: --resume: {run.resolve()}/ckpt: damaged checkpoints 8 (")
    assert error.endswith("), and none that is whole; --resume --restart begins the run again at step 0")
    assert content(run) == before
    assert go_on(run, restart=True) == 0
    warning = capfd.readouterr().err
    assert "; --restart: beginning again at step 0, 8 steps of rank 0 are lost\n" in warning
    assert begun(run) == [0]
    moved = {run / path.relative_to(run / "attempt-1"): data for path, data in content(run / "attempt-1").items()}
    assert moved == before


def test_restart_changes_nothing_where_a_checkpoint_is_whole(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert go_on(run, restart=True) == 0
    assert capfd.readouterr().err == ""
    assert begun(run) == [0, 5, 8]


def change_state(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "rank1.json"
    state = json.loads(path.read_text())
    changed = change(state)
    path.write_text(json.dumps(state if changed is None else changed))


def change_tensors(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "rank1.safetensors"
    tensors = load_file(path)
    name = "state.strategy.parameters.0"
    save_file(tensors | {name: change(tensors[name])}, path)


STATES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "rank1.json").write_text(DEEP), "cannot be read (it is nested too deeply)"),
    (lambda folder: change_state(folder, lambda state: {}), "(strategy is missing)"),
    (lambda folder: change_state(folder, lambda state: []), "cannot be read (it is a list)"),
    (lambda folder: change_state(folder, lambda state: state.pop("random") and None), "(random is missing)"),
    (
        lambda folder: change_state(folder, lambda state: state["totals"].update(more=1)),
        "(Totals: more unknown or missing)",
    ),
    (lambda folder: change_state(folder, lambda state: state["totals"].update(steps=10**30)), "(steps 1000"),
    (lambda folder: change_state(folder, lambda state: state["totals"].update(steps=-7)), "(steps -7)"),
    (lambda folder: change_state(folder, lambda state: state["standing"].update(epoch="x")), "(epoch 'x' is no whole"),
    (lambda folder: change_state(folder, lambda state: {"~dict": [[[]], [1]]}), "(unhashable type: 'list')"),
    (lambda folder: change_state(folder, lambda state: state["random"].update(python=[1])), "cannot be used ("),
    (lambda folder: change_state(folder, lambda state: state["strategy"].update(optimizer={})), "cannot be used ("),
    (lambda folder: change_state(folder, lambda state: state["staleness"].update(histogram=3)), "no histogram)"),
    (lambda folder: change_tensors(folder, lambda tensor: tensor[:-1].clone()), "(parameters ['float32 [2"),
    (lambda folder: change_tensors(folder, lambda tensor: tensor.double()), "(parameters ['float64 [2"),
    (lambda folder: change_tensors(folder, lambda tensor: tensor * torch.nan), "(the parameters are not finite)"),
    (lambda folder: (folder / "rank1.safetensors").write_bytes(b"\x80\x04."), "cannot be read (Error while"),
]


@pytest.mark.parametrize(("damage", "reason"), STATES, ids=[reason for _, reason in STATES])
def test_a_resealed_state_that_is_none_is_one_line(
    run: Path, damage: Callable[[Path], Any], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(run / "ckpt" / "8")
    reseal(run / "ckpt" / "8")
    before = content(run / "ckpt")
    capfd.readouterr()
    assert go_on(run) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(f"hpcasync: error: {run.resolve()}/ckpt/8: the state of rank 1 ")
    assert reason in error
    assert content(run / "ckpt") == before
    shutil.rmtree(run / "ckpt" / "8")
    assert go_on(run) == 0
    assert begun(run)[-1] == 5


def test_members_that_the_run_never_had(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(members=[5, 7])(run / "ckpt" / "8")
    assert go_on(run) == 2
    assert "ckpt/8: ranks [5, 7] were never in a run of 2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "run.json is no JSON: "),
        ("{}", "no 'job'"),
        ('{"job": "job", "config": {"lr"', "run.json is no JSON: "),
        ("[]", "list indices must be"),
        (DEEP, "it is nested too deeply"),
        (
            '{"job": 1, "config": {}, "failures": [], "world": {"size": 2}, "attempts": [{"status": "x"}]}',
            "not as a run",
        ),
        (None, "run.json: No such file or directory"),
    ],
)
def test_a_damaged_run_json_is_one_line(
    run: Path, text: str | None, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").unlink()
    if text is not None:
        (run / "run.json").write_text(text)
    before = content(run)
    capfd.readouterr()
    assert go_on(run) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(f"hpcasync: error: --resume: {run.resolve()}/run.json cannot be used ({reason}")
    assert content(run) == before


@pytest.mark.parametrize("name", ["ckpt", "ckpt/.8", "ckpt/.10000"])
def test_what_a_link_leads_to_is_not_touched(run: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    elsewhere = run.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("keep me")
    if name == "ckpt":
        shutil.move(run / "ckpt", elsewhere / "ckpt")
        (run / "ckpt").symlink_to(elsewhere / "ckpt")
    else:
        (run / name).symlink_to(elsewhere)
    before = content(elsewhere)
    assert go_on(run) == 2
    assert f"{run.resolve()}/{name} is a link or a file, and checkpoints lie" in capfd.readouterr().err
    assert content(elsewhere) == before


@pytest.mark.parametrize("name", ["ckpt", "ckpt/.8"])
def test_a_file_in_place_of_a_folder(run: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    if name == "ckpt":
        shutil.rmtree(run / "ckpt")
    os.mkfifo(run / name)
    assert go_on(run) == 2
    assert f"{run.resolve()}/{name} is a link or a file" in capfd.readouterr().err


def test_to_begin_again_for_want_of_a_checkpoint_is_said(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "ckpt")
    assert go_on(run) == 0
    assert (
        capfd.readouterr().err == f"hpcasync: warning: {run.resolve()} has no checkpoint: beginning again at step 0\n"
    )
    assert begun(run) == [0]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    damages=st.lists(
        st.tuples(
            st.sampled_from(["5", "8"]),
            st.sampled_from(["checkpoint.json", "rank0.json", "rank0.safetensors", "rank1.json", "rank1.safetensors"]),
            st.sampled_from(["cut", "flip", "delete", "fill", "pipe", "link"]),
            st.integers(0, 2**20),
            st.binary(max_size=20),
        ),
        max_size=4,
    )
)
def test_random_damage_is_told(
    stopped: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damages: list[tuple[str, str, str, int, bytes]],
) -> None:
    """Whole is what is as it was; the run goes on from the newest whole one, and says so where it is not the newest."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.rmtree(tmp_path / "away", ignore_errors=True)
    (tmp_path / "away").mkdir()
    run = copy(stopped, tmp_path)
    original = {step: content(run / "ckpt" / step) for step in ("5", "8")}
    linked = set()
    for number, (step, name, kind, place, filling) in enumerate(damages):
        path = run / "ckpt" / step / name
        regular = path.is_file() and not path.is_symlink()
        if kind == "cut" and regular:
            os.truncate(path, place % (path.stat().st_size + 1))
        elif kind == "flip" and regular and path.stat().st_size:
            data = bytearray(path.read_bytes())
            data[place % len(data)] ^= 1 + place % 255
            path.write_bytes(bytes(data))
        elif kind == "fill" and regular:
            path.write_bytes(filling)
        elif kind == "link" and regular:
            path.rename(tmp_path / "away" / str(number))
            path.symlink_to(tmp_path / "away" / str(number))
            linked.add(step)
        elif kind in ("delete", "pipe") and os.path.lexists(path):
            path.unlink()
            if kind == "pipe":
                os.mkfifo(path)
    whole = [step for step in ("8", "5") if step not in linked and content(run / "ckpt" / step) == original[step]]
    capfd.readouterr()
    code, said = go_on(run), capfd.readouterr().err
    assert "Traceback" not in said
    if not whole:
        assert code == 2
        assert "none that is whole" in said
        return
    assert code == 0
    assert begun(run)[-1] == int(whole[0])
    assert ("going on from 5, 3 steps of rank 0 are lost" in said) == (whole[0] == "5")
