"""Command-line arguments as a dataclass; a mistake in them as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from hpcasync.errors import UsageError, suggestion

T = TypeVar("T")

_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_KINDS = {"int": "a whole number", "float": "a number"}
_WRONG_TYPE = re.compile(
    r"Error parsing (?P<option>[^:]+): .*?(?P<kind>\bINT|\bFLOAT|\bint|\bfloat)\b.*?'(?P<value>[^']*)'"
)


def parse(cls: type[T], words: Sequence[str], prog: str, description: str = "") -> T:
    """``words`` as an instance of the dataclass ``cls``. ``--help`` prints the options and exits 0.

    Raises:
        UsageError: an unknown option (the message lists the known ones), a missing one, or a value of the wrong type.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            options, unknown = tyro.cli(
                cls, args=words, prog=prog, description=description or None, return_unknown_args=True
            )
    except SystemExit as end:
        if end.code:
            raise UsageError(_condense(errors.getvalue())) from None
        raise
    if unknown:
        name = unknown[0].partition("=")[0]
        known = _names(cls)
        told = suggestion(name, known, f"the known options are {' '.join(known)}")
        raise UsageError(f"{_unknown(unknown[0])}; {told}")
    return options


def _unknown(word: str) -> str:
    return f"unknown option {word}" if word.startswith("-") else f"unexpected argument {word!r}"


def _names(cls: type[Any]) -> list[str]:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [
        field.name.replace("_", "-")
        for field in dataclasses.fields(cls)
        if _POSITIONAL not in typing.get_args(hints[field.name])
    ]
    return [f"-{name}" if len(name) == 1 else f"--{name}" for name in names]


def _condense(box: str) -> str:
    """The message of one of tyro's framed errors, on one line: what stands between the title and the next rule.

    The frame is of │ and ─, or of spaces and - where standard output is not UTF-8. tyro offers a structured error only
    behind a module that it calls private and unstable.
    """
    _title, *lines = _COLOUR.sub("", box).strip().splitlines()
    words: list[str] = []
    for line in lines:
        text = line.strip(" │╭╮╰╯")
        if text.strip("─-"):
            words.append(text)
        elif words:
            break
    message = " ".join(words).removesuffix(".")
    wrong = _WRONG_TYPE.match(message)
    if wrong is None:
        return message.removeprefix("Error parsing ")
    option, kind, value = wrong.group("option"), wrong.group("kind"), wrong.group("value")
    return f"{option} {value}: it must be {_KINDS[kind.lower()]}"
