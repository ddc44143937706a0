"""hpcasync submit: whatever is given to it, no value is ever more than a value."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.errors import UsageError
from hpcasync.launch.slurm.request import Request
from hpcasync.launch.slurm.script import PACKAGE
from hpcasync.launch.words import quoted
from tests.submitted import JOB, NASTY, call, dry_run, flags, written

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
    [(name, value) for name, values in BAD.items() for value in values]
    + [("tasks", 0), ("nodes", -1), ("signal_seconds", 0), ("signal_seconds", 65536)],
)
def test_what_slurm_would_refuse_is_refused(name: str, value: str | int) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--{name.replace('_', '-')} ")):
        Request(**{"tasks": 1, name: value}).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("time", "signal_seconds", "minutes"),
    [("1", 120, 6), ("5:59", 120, 6), ("0:05:59", 120, 6), ("0-0:5:59", 120, 6), ("1-0", 30000, 1500), ("1", 21, 2)],
)
def test_a_time_limit_that_leaves_no_time_for_steps_is_refused(time: str, signal_seconds: int, minutes: int) -> None:
    with pytest.raises(
        UsageError, match=rf"--time {time}: it must be {minutes} minutes or more, .*\({signal_seconds}\)"
    ):
        Request(tasks=1, time=time, signal_seconds=signal_seconds).check()


@pytest.mark.parametrize("time", ["0", "6", "6:00", "0:06:00", "0-1", "0-0:6", None])
def test_a_time_limit_that_leaves_time_is_accepted(time: str | None) -> None:
    Request(tasks=1, time=time).check()
    assert "--signal=B:USR1@90" in flags(written(Request(tasks=1, time=time, signal_seconds=90)))


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_an_option_is_refused(name: str, attack: str) -> None:
    with pytest.raises(UsageError) as refused:
        Request(**{"tasks": 1, name: attack}).check()  # type: ignore[arg-type]
    assert str(refused.value).isprintable()


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


@settings(max_examples=60)
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


@settings(max_examples=60)
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
