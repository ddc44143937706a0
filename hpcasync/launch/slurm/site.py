"""What is particular to a cluster, in a TOML file that its users share.

    launcher = "srun-pmix"
    modules = ["gcc/12.3", "openmpi/5.0"]
    prologue = ["source $HOME/venv/bin/activate"]
    sbatch_flags = ["--exclusive", "--hint=nomultithread"]
    binding = "none"          # the site's Slurm binds ranks by itself

    [defaults]                # options of `hpcasync submit`
    partition = "cpu"
    account = "project@cpu"
    tasks = 32

Lines of the prologue are commands, and run as they stand: whoever writes the file runs what they like, for example
`export OMPI_MCA_btl_tcp_if_include=ib0` for Open MPI. Everything else in it is a word, and stays one.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hpcasync.errors import UsageError
from hpcasync.launch import Binding, LauncherName
from hpcasync.launch.slurm.request import DIRECTIVES, Request, option
from hpcasync.toml_file import read_toml

_MODULE = r"[A-Za-z0-9_][A-Za-z0-9_./+=-]*"
_FLAG = r"--[a-z][a-z0-9-]*(=[A-Za-z0-9_.,:;@%+=/&|()*\[\]-]+)?"
_BASH_SECONDS = 10.0
# What `hpcasync submit` decides, and what would make of a script something else.
_OWN_FLAGS = {f"--{name}" for name in DIRECTIVES.values()} | {
    *("--ntasks", "--output", "--open-mode", "--signal", "--requeue", "--no-requeue", "--dependency"),
    *("--kill-on-invalid-dep", "--mail-user", "--mail-type", "--chdir", "--parsable", "--test-only", "--wrap"),
}


@dataclass(frozen=True)
class Site:
    """A site file's content; see the module. ``defaults``: words to put before those of the command line."""

    launcher: LauncherName = "mpirun"
    modules: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    sbatch_flags: tuple[str, ...] = ()
    binding: Binding = "auto"
    defaults: tuple[str, ...] = ()


def read_site(path: Path) -> Site:
    """The site file at ``path``.

    Raises:
        UsageError: it cannot be read, has a key that is not known, or a value that cannot be used.
    """
    return read_toml(path, parse_site, f"--site {str(path)!r}")


def parse_site(entries: dict[str, Any]) -> Site:
    """A site of the entries of its file.

    Raises:
        UsageError: an unknown key, or a value that cannot be used.
    """
    _refuse_unknown(entries, [f.name for f in dataclasses.fields(Site)])
    words = {name: _texts(entries, name) for name in ("modules", "prologue", "sbatch_flags")}
    _match(words["modules"], "modules", _MODULE, "a module's name, e.g. openmpi/5.0")
    _match(words["sbatch_flags"], "sbatch_flags", _FLAG, "an option of sbatch in one word, e.g. --hint=nomultithread")
    _refuse_own(words["sbatch_flags"])
    for line in words["prologue"]:
        _check_command(line)
    return Site(
        **words,
        launcher=_one_of(entries, "launcher", get_args(LauncherName)),
        binding=_one_of(entries, "binding", get_args(Binding)),
        defaults=_options(entries.get("defaults", {})),
    )


def _refuse_unknown(entries: dict[str, Any], known: list[str], where: str = "") -> None:
    for key in entries:
        if key not in known:
            raise UsageError(f"unknown key {where}{key!r}; the known ones are {' '.join(known)}")


def _texts(entries: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = entries.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{key} = {texts!r}: it must be a list of texts")
    for text in texts:
        if not text or not text.isprintable():
            raise UsageError(f"{key}: {text!r}: it must be one line of printable text")
    return tuple(texts)


def _one_of(entries: dict[str, Any], key: str, choices: tuple[Any, ...]) -> Any:
    chosen = entries.get(key, choices[0])
    if chosen not in choices:
        raise UsageError(f"{key} = {chosen!r}: it must be one of {' '.join(choices)}")
    return chosen


def _match(texts: tuple[str, ...], key: str, pattern: str, wanted: str) -> None:
    for text in texts:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise UsageError(f"{key}: {text!r}: it must be {wanted}")


def _refuse_own(flags: tuple[str, ...]) -> None:
    """A flag that `hpcasync submit` decides about is given in one place only."""
    for flag in flags:
        name = flag.partition("=")[0]
        if name in _OWN_FLAGS:
            raise UsageError(f"sbatch_flags: {flag!r}: `hpcasync submit` sets {name} by itself, or by an option")


def _check_command(line: str) -> None:
    """A line of the prologue is whole by itself: it cannot swallow the lines after it."""
    told = subprocess.run(
        ["bash", "-n"], input=line + "\n", capture_output=True, text=True, timeout=_BASH_SECONDS, check=False
    )
    if told.returncode or told.stderr or re.search(r"(?<!\\)(\\\\)*\\$", line):
        raise UsageError(f"prologue: {line!r}: it must be a whole command of bash")


def _options(table: Any) -> tuple[str, ...]:
    """The words that give these defaults on the command line of `hpcasync submit`, where they are checked."""
    if not isinstance(table, dict):
        raise UsageError(f"defaults = {table!r}: it must be a table of options")
    _refuse_unknown(table, [f.name for f in dataclasses.fields(Request)], "defaults.")
    return tuple(_word(key, value) for key, value in table.items())


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return option(key) if value else f"--no-{option(key).removeprefix('--')}"
    if not isinstance(value, str | int):
        raise UsageError(f"defaults.{key} = {value!r}: it must be a text, a whole number, true or false")
    return f"{option(key)}={value}"
