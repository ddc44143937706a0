"""hpcasync submit: its script's text, what it refuses, and that no value is ever more than a value."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync import cli
from hpcasync.errors import UsageError
from hpcasync.launch.slurm import overrides
from hpcasync.launch.slurm.request import Request
from hpcasync.launch.slurm.script import PACKAGE, Submission, script
from hpcasync.launch.slurm.site import Site, parse_site
from hpcasync.launch.words import quoted

JOB = str(Path(__file__).with_name("tiny_job.py"))
NASTY = st.text(
    st.one_of(st.sampled_from("'\"\\$`;#&|<>(){}[]!*?~=:,%@+-_. \t\r\n\x1b\u2028\u202eé"), st.characters(codec="utf-8"))
)
ATTACKS = (
    *("a\n#SBATCH --uid=0", "a\ntouch owned", "$(touch owned)", "`touch owned`", "; touch owned", "' ; touch owned; '"),
    *(
        '"; touch owned; "',
        "a b",
        " a",
        "a ",
        "a\\",
        "#SBATCH --wrap=id",
        "a#b",
        "-x",
        "--wrap=id",
        "",
        "é",
        "a\u00a0b",
    ),
    *("a\r", "a'b", 'a"b', "a=$HOME", "\udcff", "١", "a\x1b[2J", "a\tb", "~root", "a;b", "a>b", "{a,b}"),
)


def call(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``hpcasync WORDS``, in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["hpcasync", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = before
    assert isinstance(end.value.code, int)
    return end.value.code, out.getvalue(), err.getvalue()


def dry_run(*words: str) -> str:
    code, out, err = call("submit", "--dry-run", "--tasks=2", *words)
    assert code == 0, err
    return out


def flags(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def refusal(*words: str) -> str:
    code, out, err = call("submit", "--dry-run", *words)
    assert (code, out) == (2, "")
    assert err.startswith("hpcasync: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("hpcasync: error: ").rstrip("\n")


def written(request: Request, site: Site = Site(), program: Sequence[str] = ("job.py",)) -> str:  # noqa: B008 -- frozen
    return script(request, site, Submission(program, Path("results"), None, 20, "/opt/python", ["hpcasync", "submit"]))


def test_the_whole_script() -> None:
    request = Request(nodes=4, tasks=32, time="2:00:00", partition="cpu", afterok="20:21", singleton=True, job_name="a")
    site = Site(
        "srun-pmix", ("gcc/12.3",), ("export A='b c'",), ("--exclusive", "--hint=nomultithread"), binding="none"
    )
    assert (
        written(request, site, ["jobs/a b.py", "--lr", "0.1", "it's"])
        == f"""#!/usr/bin/env bash
#SBATCH --job-name=a
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --time=2:00:00
#SBATCH --partition=cpu
#SBATCH --dependency=afterok:20:21,singleton
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --output=a-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --exclusive
#SBATCH --hint=nomultithread
# Written by: hpcasync submit
set -Eeuo pipefail
HPCASYNC_HOME={PACKAGE.parent}
HPCASYNC_PYTHON=/opt/python
HPCASYNC_LAUNCHER=srun-pmix
HPCASYNC_BINDING=none
HPCASYNC_RESULTS=results
HPCASYNC_NAME=''
HPCASYNC_ATTEMPTS=20
. {PACKAGE}/launch/batch.sh
batch_site() {{
  set +Eeu # the site's lines are not ours
  module load gcc/12.3 || batch_fail 'no module gcc/12.3'
  export A='b c'
  set -Eeu
}}
batch_begin
batch_run "$(batch_name a_b)" 'jobs/a b.py' --lr 0.1 'it'"'"'s' || true
batch_end
"""
    )


GOOD = {
    "job_name": ["a", "train-1_b.c"],
    "time": ["90", "90:30", "2:00:00", "1-12", "1-12:30", "1-12:30:15"],
    "partition": ["cpu", "cpu,gpu_p13"],
    "account": ["project@cpu"],
    "qos": ["qos-dev"],
    "mem": ["16G", "512", "0", "64000M"],
    "gres": ["gpu", "gpu:2", "gpu:a100:2,craynetwork:4", "shard:2K"],
    "gpus": ["4", "a100:4", "volta:3,kepler:1"],
    "constraint": ["icelake&ib", "[rack1*2|rack2*4]", "(a|b)&c", "a,b"],
    "array": ["0-15", "0,6,16-32", "0-15:4", "0-15%4", "7", "1,3,5-9:2%3"],
    "after": ["20", "20+5:21_3+1"],
    "afterok": ["20", "20:21_3"],
    "afterany": ["20:21"],
    "mail": ["me", "a.b+c@d-e.org"],
    "mail_type": ["END", "BEGIN,TIME_LIMIT_80"],
}
BAD = {
    "time": ["", "1:2:3:4", "x", "-5", "1-", "2h", "1-12:30:15:1", "UNLIMITED "],
    "mem": ["16GB", "-1", "G", "1.5G"],
    "gres": ["gpu:", ":2", "gpu:2,", "gpu:a:b:c", "gpu 2"],
    "gpus": ["gpu", "a100:", "-1"],
    "array": ["a", "0-", "0-15%", "0-15%0x", "-1", "0..5"],
    "after": ["x", "20+", "20,21"],
    "afterok": ["afterok:20", "20+5", "20:"],
    "afterany": ["20 21"],
    "mail_type": ["end", "ALL,", "SOMETIMES"],
    "mail": ["a@", "a@b@c", "<a@b>"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_what_slurm_accepts_is_accepted(name: str, value: str) -> None:
    request = Request(**{"tasks": 1, "mail": "me", name: value})
    request.check()
    assert sum(value in line for line in flags(written(request))) >= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD.items() for value in values] + [("tasks", 0), ("nodes", -1)],
)
def test_what_slurm_would_refuse_is_refused(name: str, value: str | int) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--{name.replace('_', '-')} ")):
        Request(**{"tasks": 1, name: value}).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_an_option_is_refused(name: str, attack: str) -> None:
    with pytest.raises(UsageError) as refused:
        Request(**{"tasks": 1, name: attack}).check()  # type: ignore[arg-type]
    assert str(refused.value).isprintable()


@settings(deadline=None)
@given(name=st.sampled_from(sorted(GOOD)), value=NASTY)
def test_any_text_in_an_option_is_one_word_of_one_line_or_refused(name: str, value: str) -> None:
    plain = flags(written(Request(tasks=1, mail="me", job_name="a", array="1", after="1")))
    request = Request(**{"tasks": 1, "mail": "me", "job_name": "a", "array": "1", "after": "1", name: value})  # type: ignore[arg-type]
    try:
        request.check()
    except UsageError as refused:
        assert str(refused).isprintable()
        return
    text = flags(written(request))
    assert sum(line not in plain for line in text) <= (2 if name == "job_name" else 1)  # it names the output, too
    assert len(text) <= len(plain) + 1
    assert all(re.fullmatch(r"--[a-z-]+(=[A-Za-z0-9_.,:@%+*&|()\[\]-]+)?", line) for line in text)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*sorted(GOOD), "name", "nodes", "tasks", "site", "results"]),
    value=NASTY | st.sampled_from(ATTACKS),
    apart=st.booleans(),
)
def test_any_text_on_the_command_line_is_a_dry_run_or_one_line(name: str, value: str, apart: bool) -> None:
    option = f"--{name.replace('_', '-')}"
    given_words = [option, value] if apart else [f"{option}={value}"]
    code, out, err = call("submit", "--dry-run", "--tasks=1", *given_words, JOB)
    assert code in (0, 2)
    if code == 2:
        assert out == ""
        assert err.startswith("hpcasync: error: ")
        assert err.count("\n") == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(NASTY.filter(lambda word: "\0" not in word), min_size=1, max_size=8))
def test_bash_reads_quoted_words_back(words: list[str]) -> None:
    line = " ".join(map(quoted, words))
    assert line.isprintable()
    read = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert read.split(b"\0")[:-1] == [word.encode() for word in words]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_jobs_word_arrives_as_it_is(attack: str, tmp_path: Path) -> None:
    library = tmp_path / "batch.sh"
    library.write_text(
        'batch_begin() { :; }\nbatch_end() { :; }\nbatch_name() { echo "$1"; }\nbatch_run() { printf "%s\\0" "$@"; }\n'
    )
    words = ["--data", attack, attack, f"--x={attack}"]
    text = dry_run(JOB, *words).rpartition("\n\n")[0].replace(str(PACKAGE / "launch" / "batch.sh"), str(library))
    assert not [line for line in flags(text) if attack and attack in line]
    read = subprocess.run(["bash"], input=os.fsencode(text), capture_output=True, cwd=tmp_path, check=True)
    assert read.stdout.split(b"\0")[:-1] == [b"tiny_job", *(os.fsencode(word) for word in [JOB, *words])]
    assert [path.name for path in tmp_path.iterdir()] == ["batch.sh"]


def test_an_array_seeds_each_run_with_its_index() -> None:
    text = dry_run("--array=0-3%2", JOB)
    assert "--output=tiny_job-%A_%a.out" in flags(text)
    assert f'"$(batch_name tiny_job)" {JOB} --seed "$SLURM_ARRAY_TASK_ID" || true' in text


def test_without_requeue_there_is_one_attempt() -> None:
    text = dry_run("--no-requeue", JOB)
    assert "--no-requeue" in flags(text)
    assert "--requeue" not in flags(text)
    assert "HPCASYNC_ATTEMPTS=1\n" in text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tasks=2"], "no job file"),
        (["--tasks=2", "missing.py"], "'missing.py': there is no such job file"),
        ([JOB], "--tasks: how many ranks on every node"),
        (["--tasks=x", JOB], "--tasks x: it must be a whole number"),
        (["--tasks=2", "--attempts=0", JOB], "--attempts 0: it must be 1 or more"),
        (["--tasks=2", "--frobnicate", JOB], "unknown option --frobnicate; the known options are --nodes --tasks"),
        (["--tasks=2", "--name=a/b", JOB], "--name 'a/b': it must be letters"),
        (["--tasks=2", "--name=a", "--array=0-3", JOB], "--name a: an array makes a run per index"),
        (["--tasks=2", "--results=-x", JOB], "'-x': it looks like an option; write ./-x"),
        (["--tasks=2", JOB, "--name", "a"], "'--name' after the job: `hpcasync submit --name`"),
        (["--tasks=2", JOB, "--results=a"], "'--results=a' after the job: `hpcasync submit --results`"),
        (["--tasks=2", JOB, "--help"], "'--help' after the job: `hpcasync run JOB.py --help` shows"),
        (["--tasks=2", JOB, "--resume"], "'--resume' after the job: a submitted run"),
        (["--tasks=2", "--array=1", JOB, "--seed=3"], "'--seed=3' after the job: in an array"),
        (["--tasks=2", JOB, "a", ":", "b"], "':' as a word of its own begins another program"),
        (["--tasks=2", "--site=missing.toml", JOB], "--site 'missing.toml': it cannot be read"),
    ],
)
def test_a_mistake_is_told_on_one_line(words: list[str], complaint: str) -> None:
    assert complaint in refusal(*words)


def test_no_launcher_is_given_a_colon() -> None:
    code, _, err = call("run", "--dry-run", JOB, ":", "id")
    assert code == 2
    assert "begins another program" in err


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


@settings(deadline=None)
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


def test_variables_that_sbatch_obeys_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SBATCH_TIMELIMIT": "5", "SBATCH_QOS": "a\nb", "SBATCH_NO_REQUEUE": "", "SBATCH_ARRAY_INX": "1"}
    assert overrides.sbatch_variables({**variables, "SLURM_JOB_ID": "1", "SBATCH_COMMENT": "not read"}) == variables
    assert overrides.told(variables, ["--time=1:00", "--requeue", "--nodes=1"]) == [
        "SBATCH_TIMELIMIT=5 is set: it overrides --time=1:00 (unset SBATCH_TIMELIMIT to prevent it)",
        "SBATCH_QOS=$'a\\x0ab' is set: it adds --qos (unset SBATCH_QOS to prevent it)",
        "SBATCH_NO_REQUEUE='' is set: it overrides --requeue (unset SBATCH_NO_REQUEUE to prevent it)",
        "SBATCH_ARRAY_INX=1 is set: it adds --array (unset SBATCH_ARRAY_INX to prevent it)",
    ]
    monkeypatch.setenv("SBATCH_PARTITION", "urgent")
    code, _, err = call("submit", "--dry-run", "--tasks=1", "--partition=debug", JOB)
    assert code == 0
    assert err.startswith("hpcasync: note: SBATCH_PARTITION=urgent is set: it overrides --partition=debug")


def fake_sbatch(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sbatch").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "sbatch").chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_job_and_where_its_output_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(tmp_path, f"cat > {tmp_path}/got; echo greeting; echo '12;other'; echo warning >&2", monkeypatch)
    monkeypatch.chdir(tmp_path)
    code, out, err = call("submit", "--tasks=2", JOB, "é")
    assert err == "warning\n"
    assert (code, out) == (0, f"job 12\noutput: {tmp_path}/tiny_job-12.out\nrun: {tmp_path}/results/tiny_job-12\n")
    assert (tmp_path / "got").read_text() + "\n" == dry_run(JOB, "é").replace("--dry-run ", "").rpartition("sbatch")[0]
    _, out, _ = call("submit", "--tasks=2", "--array=1-2", "--job-name=a", JOB)
    assert out == f"job 12\noutput: {tmp_path}/a-12_<index>.out\nrun: {tmp_path}/results/tiny_job-12_<index>\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "echo 'sbatch: error: invalid partition specified: x' >&2; echo 'sbatch: error: failed' >&2; exit 1",
            "sbatch: invalid partition specified: x; failed",
        ),
        ("exit 3", "sbatch: exit code 3"),
    ],
)
def test_what_sbatch_refuses(text: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sbatch(tmp_path, text, monkeypatch)
    code, out, err = call("submit", "--tasks=2", JOB)
    assert (code, out, err) == (2, "", f"hpcasync: error: {complaint}\n")


def test_without_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = call("submit", "--tasks=2", JOB)
    assert code == 2
    assert "no sbatch found" in err
