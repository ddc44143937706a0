"""Who holds up a run: judgements on pulses by hand, and real ranks that get stuck in a step of our choice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from hpcasync.run import Run, main, recovery
from hpcasync.run.watchdog import Watchdog
from hpcasync.stall.activity import _PHASES, activity, main_thread, stack
from hpcasync.stall.judgement import Seen, judge
from hpcasync.stall.pulse import Pulse, process, pulse_file, pulsing
from hpcasync.status.screen import line
from tests import stalled_job, tiny_job
from tests.status_runs import make_run, see

JOB = Path(stalled_job.__file__)
HERE = Pulse(
    rank=0,
    beat=1,
    every_seconds=0.1,
    step=7,
    phase="training",
    verb="",
    where="train.py:31 in train",
    unmoved_seconds=0.0,
    stack="  File train.py\n",
    host="elsewhere",
    pid=1,
    born="1",
)
WAITS = replace(HERE, verb="allreduce", where="train.py:40 in train")


def seen(pulse: Pulse, unmoved: float, silent: float = 0.0) -> Seen:
    return Seen(replace(pulse, unmoved_seconds=unmoved), silent)


def test_a_busy_rank_holds_up_those_that_wait() -> None:
    stall = judge({0: seen(WAITS, 61), 1: seen(HERE, 62), 2: seen(WAITS, 61)}, 60)
    assert stall is not None
    assert stall.culprits == (1,)
    assert stall.line == (
        "rank 1 has not moved for 62 s: it is busy at train.py:31 in train; "
        "ranks 0, 2 wait in allreduce() at train.py:40 in train"
    )
    assert stall.brief == "1 at train.py:31 for 62 s"
    assert stall.stacks.startswith("stack of rank 1, in step 8:\n")


def test_a_rank_whose_process_says_nothing_is_to_blame_whatever_it_was_doing() -> None:
    stall = judge({0: seen(WAITS, 65), 1: seen(WAITS, 2, silent=63)}, 60)
    assert stall is not None
    assert stall.culprits == (1,)
    assert "it gives no sign of life (process 1 on elsewhere), last at train.py:40" in stall.line
    assert stall.brief == "1 silent for 65 s"


def test_whoever_waits_for_a_slow_rank_that_moves_is_not_stalled() -> None:
    assert judge({0: seen(WAITS, 500), 1: seen(HERE, 3)}, 60) is None
    assert judge({0: seen(WAITS, 59), 1: seen(HERE, 59)}, 60) is None
    assert judge({}, 60) is None


def test_ranks_that_wait_for_each_other() -> None:
    barrier = replace(WAITS, verb="barrier", where="train.py:12 in train")
    stall = judge({0: seen(WAITS, 70), 1: seen(barrier, 80)}, 60)
    assert stall is not None
    assert stall.culprits == ()
    assert stall.line == (
        "the ranks have not moved for 70 s: rank 0 waits in allreduce() at train.py:40 in train; "
        "rank 1 waits in barrier() at train.py:12 in train"
    )
    assert stall.brief == "0 in allreduce(), 1 in barrier() for 70 s"


def test_an_evaluation_has_a_name() -> None:
    stall = judge({0: seen(replace(HERE, phase="evaluating"), 90), 1: seen(replace(WAITS, phase="draining"), 80)}, 60)
    assert stall is not None
    assert "it is evaluating at train.py:31 in train; rank 1 waits in allreduce() while draining" in stall.line


def test_many_ranks_fit_on_a_line() -> None:
    stall = judge({rank: seen(WAITS if rank % 2 else HERE, 90) for rank in range(1000)}, 60)
    assert stall is not None
    assert len(stall.line) < 400
    assert "ranks 0, 2, 4, 6, 8, 10, 12, 14 and 492 more have not moved" in stall.line


def test_what_a_thread_does_is_read_from_its_stack() -> None:
    """A wait for others, seen from another thread; and this line of the job's own code."""
    from hpcasync.mpi.progress import wait

    done = threading.Event()
    thread = threading.Thread(target=lambda: wait(done.is_set), name="waits")
    thread.start()
    try:
        frame = frame_of(thread)
        assert activity(frame).verb == "wait"
        assert activity(frame).where.startswith("test_watchdog.py:")
        assert "hpcasync/mpi/progress.py" in stack(frame)
    finally:
        done.set()
        thread.join()
    mine = activity(main_thread())
    assert (mine.phase, mine.verb) == ("training", "")
    assert mine.where.endswith("in test_what_a_thread_does_is_read_from_its_stack")


def frame_of(thread: threading.Thread) -> FrameType:
    assert thread.ident is not None
    while "wait" not in stack(frame := sys._current_frames()[thread.ident]):
        time.sleep(0.01)
    return frame


def test_a_pulse_is_read_as_it_was_written(tmp_path: Path) -> None:
    pulse = replace(HERE, rank=3)
    pulse.write(tmp_path)
    assert Pulse.read(tmp_path, 3) == pulse
    assert pulsing(tmp_path) == [3]
    for text in ("", "{", "[]", '{"rank": 3}', "[" * 100000):
        pulse_file(tmp_path, 3).write_text(text)
        assert Pulse.read(tmp_path, 3) is None
    assert Pulse.read(tmp_path, 4) is None


def test_a_process_is_known_by_its_birth() -> None:
    state, born = process(os.getpid())
    assert state in "RS"
    me = replace(HERE, host=os.uname().nodename, pid=os.getpid(), born=born)
    assert me.process_state == state
    assert replace(me, born="1").process_state == ""
    assert HERE.process_state == "?"


def test_a_watchdog_speaks_once_and_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the ranks 0 and 1 this process is the second; the first has ended and has no pulse. Nothing moves."""
    make_run(tmp_path / "run", ranks=2)
    ended = threading.Event()

    def abort(code: int) -> Any:
        assert code == 1
        watchdog._stopped.set()  # what ends its thread: a real one ends the process
        ended.set()

    watchdog = Watchdog(tmp_path / "run", 1, lambda: [0, 1], lambda: 5, 0.2, abort)
    assert ended.wait(60)
    told = capfd.readouterr().err
    assert told.count("hpcasync: warning: stalled: rank 1 has not moved for ") == 1
    assert told.count("hpcasync: error: stalled: rank 1 has not moved for 2 s") == 1
    assert "the run ends after 2 s of this (--stall-seconds 0.2: more for longer steps, 0 for never)" in told
    failure = json.loads((tmp_path / "run/FAILED.json").read_text())
    assert failure["error"].startswith("stalled: rank 1 has not moved for 2 s: it is busy at ")
    assert "test_a_watchdog_speaks_once" in failure["traceback"]
    assert "test_a_watchdog_speaks_once" in (tmp_path / "run/stalled.txt").read_text()
    watchdog.stop()
    assert pulsing(tmp_path / "run") == []


def test_a_watchdog_says_that_the_ranks_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step, told = 0, ""
    watchdog = Watchdog(tmp_path, 0, lambda: [0], lambda: step, 1.0, sys.exit)
    while not (tmp_path / "stalled.txt").exists():
        time.sleep(0.01)
    while "hpcasync: warning: the ranks go on: they had not moved for" not in told:
        step += 1
        time.sleep(0.01)
        told += capfd.readouterr().err
    watchdog.stop()


def test_a_watchdog_leaves_a_rank_alone_that_moves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At every beat it has made another step, however late the beat comes."""
    steps = iter(range(1000000))
    watchdog = Watchdog(tmp_path, 0, lambda: [0], lambda: next(steps), 0.2, sys.exit)
    while (pulse := Pulse.read(tmp_path, 0)) is None or pulse.beat < 5:
        time.sleep(0.01)
    watchdog.stop()
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_status_names_who_holds_up_the_others(tmp_path: Path) -> None:
    """Rank 3 is the slowest, but it is rank 1 that the others wait for now."""
    folder = make_run(tmp_path / "run")
    for rank in range(4):
        pulse = replace(HERE if rank == 1 else WAITS, rank=rank, unmoved_seconds=35.0)
        pulse.write(folder)
    state = see(folder)
    assert state.entry()["held_up"].startswith("rank 1 has not moved for 35 s: it is busy at train.py:31")
    assert "1 at train.py:31 for 35 s" in line(state)
    old = time.time() - 90
    replace(WAITS, rank=1).write(folder)
    os.utime(pulse_file(folder, 1), (old, old))
    assert "1 silent for 9" in line(see(folder))
    for rank in range(4):
        replace(HERE, rank=rank).write(folder)
    assert see(folder).stall is None


def test_simulated_ranks_have_no_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcasync.run.run.Watchdog", None)
    with pytest.raises(SystemExit) as end:
        main(tiny_job.train, tiny_job.Tiny, ["--world", "sim", "--results", str(tmp_path), "--steps", "2"])
    assert end.value.code == 0


def test_a_slow_step_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    code, told = run(tmp_path, "sleep", "--sleep-seconds", "4")
    assert code == 0
    assert "hpcasync: warning: stalled: rank 1 has not moved for" in told
    assert "it is busy at stalled_job.py:" in told
    assert not list((tmp_path / "run").glob("pulse.*"))


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("barrier", "rank 1 waits in barrier() at stalled_job.py:"),
        ("loop", "rank 1 has not moved for 10 s: it is busy at stalled_job.py:"),
        ("stop", "rank 1 has not moved for 10 s: it is stopped (process "),
    ],
)
def test_a_stuck_rank_ends_the_run(how: str, cause: str, tmp_path: Path) -> None:
    code, told = run(tmp_path, how)
    assert code == 1
    assert "hpcasync: warning: stalled: " in told
    failure = json.loads((tmp_path / "run/FAILED.json").read_text())
    assert failure["error"].startswith("stalled: ")
    assert cause in failure["error"]
    assert "rank 0 waits in allreduce() at stalled_job.py:" in failure["error"]
    assert f"hpcasync: error: {failure['error']}\n" in told
    for rank in range(2):
        pulse = json.loads(pulse_file(tmp_path / "run", rank).read_text())
        while process(pulse["pid"])[1] == pulse["born"] and process(pulse["pid"])[0] != "Z":
            time.sleep(0.1)  # it is being ended; one that lives on exceeds the test's time limit


def run(tmp_path: Path, how: str, *words: str) -> tuple[int, str]:
    """`hpcasync run` of two real ranks, the second of which holds up the first: exit code and stderr."""
    argv = [sys.executable, "-m", "hpcasync.cli", "run", "-n", "2", str(JOB), "--how", how, "--stall-seconds", "1"]
    ended = subprocess.run(
        [*argv, "--results", str(tmp_path), "--name", "run", "--steps", "8", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(JOB.parent.parent)},
    )
    return ended.returncode, ended.stderr


def test_the_phases_are_named_after_functions_that_there_are() -> None:
    assert all(hasattr(Run, name) or hasattr(recovery, name) for name in _PHASES)
