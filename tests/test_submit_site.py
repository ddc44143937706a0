"""hpcasync submit: a site's file, its defaults, and mistakes in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.launch.slurm.request import Request
from hpcasync.launch.slurm.script import PACKAGE
from hpcasync.launch.slurm.site import parse_site
from tests.submitted import JOB, NASTY, call, flags, refusal, written


def test_a_sites_defaults_stand_before_the_command_line(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        'launcher = "srun-pmi2"\nbinding = "core"\n'
        '[defaults]\npartition = "cpu"\naccount = "a@b"\ntasks = 8\nrequeue = false\nsingleton = true\n'
    )
    code, out, _ = call("submit", "--dry-run", "--site", str(site), "--partition=gpu", JOB)
    assert code == 0
    assert {"--partition=gpu", "--account=a@b", "--ntasks-per-node=8", "--no-requeue"} <= set(flags(out))
    assert "--partition=cpu" not in flags(out)
    assert "--dependency=singleton" in flags(out)
    assert "HPCASYNC_LAUNCHER=srun-pmi2\nHPCASYNC_BINDING=core\n" in out


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("launcher = 3", "launcher = 3: it must be one of mpirun mpiexec srun-pmix srun-pmi2"),
        ('launcher = "ssh"', "launcher = 'ssh': it must be one of"),
        ('binding = "moon"', "binding = 'moon': it must be one of auto core none"),
        ("launchers = 1", "unknown key 'launchers'; the known ones are launcher modules prologue"),
        ("[defaults]\nfrob = 1", "unknown key defaults.'frob'; the known ones are nodes tasks"),
        ("[defaults]\nnodes = 1.5", "defaults.nodes = 1.5: it must be a text, a whole number, true or false"),
        ("defaults = 1", "defaults = 1: it must be a table of options"),
        ('modules = "gcc"', "modules = 'gcc': it must be a list of texts"),
        ("modules = [1]", "modules = [1]: it must be a list of texts"),
        ('modules = ["a;b"]', "modules: 'a;b': it must be a module's name"),
        ('modules = ["-x"]', "modules: '-x': it must be a module's name"),
        ('modules = [""]', "modules: '': it must be one line of printable text"),
        ('sbatch_flags = ["--wrap=id"]', "sbatch_flags: '--wrap=id': `hpcasync submit` sets --wrap by itself"),
        ('sbatch_flags = ["--partition=a"]', "sets --partition by itself, or by an option"),
        ('sbatch_flags = ["-p a"]', "sbatch_flags: '-p a': it must be an option of sbatch in one word"),
        ('sbatch_flags = ["--comment=a b"]', "it must be an option of sbatch in one word"),
        ('prologue = ["a\\nb"]', "it must be one line of printable text"),
        ('prologue = ["if true"]', "prologue: 'if true': it must be a whole command of bash"),
        ('prologue = ["}"]', "it must be a whole command"),
        ('prologue = ["echo \'a"]', "it must be a whole command"),
        ('prologue = ["cat <<E"]', "it must be a whole command"),
        ('prologue = ["a \\\\"]', "it must be a whole command"),
    ],
)
def test_a_mistake_in_a_site_file(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)) as refused:
        parse_site(tomllib.loads(text))
    assert str(refused.value).isprintable()


def test_the_readmes_site_file_can_be_used() -> None:
    blocks = (PACKAGE.parent / "README.md").read_text().split("```")
    (block,) = [block for block in blocks if block.startswith("toml\nlauncher")]
    site = parse_site(tomllib.loads(block.removeprefix("toml\n")))
    assert site.launcher == "srun-pmix"
    assert {"--account=project@cpu", "--tasks=32"} == set(site.defaults)


def test_a_site_file_that_is_none(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text("launcher = \n")
    assert f"--site '{site}': it is not TOML" in refusal("--site", str(site), JOB)


@given(key=st.sampled_from(["modules", "sbatch_flags", "launcher", "binding"]), value=NASTY)
def test_any_word_of_a_site_file_is_one_word_or_refused(key: str, value: str) -> None:
    try:
        site = parse_site({key: [value] if key in ("modules", "sbatch_flags") else value})
    except UsageError as refused:
        assert str(refused).isprintable()
        return
    assert re.fullmatch(r"[A-Za-z0-9_.,:;@%+=/&|()*\[\]-]+", value)
    lines = written(Request(tasks=1), site).splitlines()
    assert len(lines) <= len(written(Request(tasks=1)).splitlines()) + 5
