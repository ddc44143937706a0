"""What `make` installs: which torch, with a pip that only pretends, and what it says before it installs anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# $OWN and $CPU are the versions that pip's own indexes and PyTorch's offer; $INSTALLED is what is there.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  *importlib*) [[ $INSTALLED == "${{@: -1}}" ]] ;;
  *versions*{CPU_INDEX}*) [[ -n $CPU ]] && echo "Available versions: $CPU" ;;
  *versions*) echo "Available versions: $OWN" ;;
  *) echo "$@" >>"$(dirname "$0")/installed" ;;
esac
"""
(PIN,) = re.findall("^torch==(.*)$", (HOME / "constraints.txt").read_text(), re.MULTILINE)
BOTH = f"9.9.0, {PIN}+cpu, {PIN}"
PLAIN = f"1{PIN}+cpu, {PIN}, {PIN}+cpu1"


def bash(line: str, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line, "bash", *map(str, words)],
        cwd=HOME, env=os.environ | variables, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "versions", "says", "index"),
    [
        (False, {"OWN": BOTH, "CPU": BOTH}, "no GPU is seen, so the CPU build from pip's index: 0.2 GB", ()),
        (False, {"OWN": PLAIN, "CPU": BOTH}, f"the CPU build from {CPU_INDEX}: 0.2 GB", ("--index-url", CPU_INDEX)),
        (False, {"OWN": PLAIN, "CPU": ""}, f"no CPU build is offered by pip's index or by {CPU_INDEX}", None),
        (True, {"OWN": BOTH, "CPU": BOTH}, "a GPU is seen, so PyPI's build: 5.8 GB with CUDA", None),
        (False, {"OWN": BOTH, "CPU": BOTH, "INSTALLED": PIN}, "", None),
    ],
    ids=["own index", "PyTorch's index", "no CPU build", "GPU", "there already"],
)
def test_where_torch_comes_from(
    gpu: bool, versions: dict[str, str], says: str, index: tuple[str, ...] | None, tmp_path: Path
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    line = f'. .ci/install-torch; sees_gpu() {{ {"true" if gpu else "false"}; }}; main "$@"'
    told = bash(line, tmp_path, **({"INSTALLED": ""} | versions))
    assert (told.returncode, told.stderr) == (0, "")
    assert says in told.stdout
    assert told.stdout.count("\n") == bool(says)
    installed = python.with_name("installed")
    if index is None:
        assert not installed.exists()
    else:
        words = ["-m", "pip", "install", "--quiet", "--no-deps", f"torch=={PIN}+cpu", *index]
        assert installed.read_text().split() == words


def test_a_gpu_is_a_device_or_its_tool(tmp_path: Path) -> None:
    line = '. .ci/install-torch; PATH=$2; sees_gpu "$1" && echo yes || echo no'
    assert bash(line, tmp_path, "/nowhere").stdout == "no\n"
    (tmp_path / "nvidia0").touch()
    assert bash(line, tmp_path, "/nowhere").stdout == "yes\n"
    tool = tmp_path / "nvidia-smi"
    tool.touch(0o755)
    assert bash(line, "/nowhere", tmp_path).stdout == "yes\n"


@pytest.mark.parametrize("missing", ["g++", "Python.h"])
def test_what_the_tests_need_is_said_before_anything_is_installed(missing: str, tmp_path: Path) -> None:
    """In a copy without an environment and without a Horovod that was built before."""
    for name in ("Makefile", ".ci", "pyproject.toml", "constraints.txt"):
        source = HOME / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "sh", "env", "dirname", "make", "python3", *(["g++"] if missing == "Python.h" else [])):
        found = shutil.which(tool)
        (tools / tool).symlink_to(found or "/usr/bin/true")
    if missing == "Python.h":
        (tools / "python3").unlink()
        (tools / "python3").symlink_to("/usr/bin/false")
    told = subprocess.run(
        [tools / "make", "test"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert told.returncode == 2
    assert f"Horovod has to be compiled, and there is no {missing}: apt-get install" in told.stderr
    assert told.stdout == ""
    assert not (tmp_path / ".venv").exists()
