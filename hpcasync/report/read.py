"""Run folders, as `hpcasync run` leaves them: run.json, metrics.rank<r>.jsonl, DONE or FAILED.json.

A folder may belong to a run that is going on, was killed while it wrote, or was damaged since. Reading therefore
takes what is whole, counts what is not, and never raises for the content of a metrics file.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcasync.errors import UsageError

SCHEMA = "hpcasync.run/1"
COLUMNS = ("step", "seconds", "loss", "samples", "staleness", "waited")
_decode = json.JSONDecoder().decode  # json.loads would look for the encoding of each of a million lines
Status = Literal["done", "running", "interrupted", "failed"]
STATUSES: dict[Status, str] = {
    "done": "finished",
    "running": "running or cut off",
    "interrupted": "stopped, can go on",
    "failed": "failed",
}


@dataclass(frozen=True)
class Evaluation:
    """What rank 0 measured on held-out data after `step` steps, `seconds` after the start."""

    step: float
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class Metrics:
    """One rank's samples.

    `columns` maps each name in COLUMNS to a float64 array of shape (steps,), in the order of the file; what a line
    does not say is NaN. `unreadable` counts broken lines, except a torn last one: that one is how a running or killed
    run ends.
    """

    rank: int
    columns: dict[str, NDArray[np.float64]]
    evaluations: tuple[Evaluation, ...]
    unreadable: int


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read. `document` is run.json; `summary` its finite numbers, by metric."""

    folder: Path
    document: dict[str, Any]
    name: str
    job: str
    strategy: str
    options: dict[str, Any]
    world: dict[str, Any]
    size: int
    config: dict[str, Any]
    summary: dict[str, float]
    status: Status
    failure: str
    ranks: tuple[Metrics, ...]

    @property
    def evaluations(self) -> list[Evaluation]:
        return sorted((e for metrics in self.ranks for e in metrics.evaluations), key=lambda e: e.seconds)

    def column(self, name: str) -> NDArray[np.float64]:
        """(steps of all ranks,) one column of every rank, rank after rank."""
        return np.concatenate([metrics.columns[name] for metrics in self.ranks] or [np.empty(0)])


def find_runs(paths: Sequence[Path], levels: int = 2) -> list[Path]:
    """The run folders that `paths` are or hold, so many levels down at most; each once, in a stable order.

    Raises UsageError for a path that is not a folder, and when there is no run at all.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path} is not a folder; give a run folder or a folder that holds runs")
        inside = [path] if (path / "run.json").exists() else _below(path, levels)
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    if not found:
        deep = "one level" if levels == 1 else f"the {levels} levels"
        raise UsageError(f"no run.json in {', '.join(map(str, paths))} nor in {deep} of folders below")
    return list(found.values())


def _below(path: Path, levels: int) -> list[Path]:
    patterns = ("*/" * level + "run.json" for level in range(1, levels + 1))
    return sorted(file.parent for pattern in patterns for file in path.glob(pattern))


def read_run(folder: Path, metrics: bool = True) -> RunRecord:
    """The run in ``folder``; without ``metrics``, ``ranks`` is empty and no metrics file is read.

    Raises:
        UsageError: a run.json that is missing, broken or of another schema; the message names it.
    """
    path = folder / "run.json"
    document = _read_object(path)
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema is {document.get('schema')!r}, expected {SCHEMA!r}")
    strategy = _take(document, "strategy", dict, path)
    world = _take(document, "world", dict, path)
    size = _take(world, "size", int, path)
    if size < 1:
        raise UsageError(f"{path}: world size is {size}, expected at least 1")
    files = sorted(folder.glob("metrics.rank*.jsonl"), key=lambda file: (len(file.name), file.name))
    return RunRecord(
        folder=folder,
        document=document,
        name=_take(document, "name", str, path),
        job=_take(document, "job", str, path),
        strategy=_take(strategy, "name", str, path),
        options=_take(strategy, "options", dict, path),
        world=world,
        size=size,
        config=_take(document, "config", dict, path),
        summary=_summary(document.get("summary")),
        status=_status(folder, document),
        failure=_failure(folder / "FAILED.json"),
        ranks=tuple(read_metrics(file) for file in files if metrics),
    )


def direction(document: dict[str, Any], metric: str) -> str:
    """Which values of a job's metric are better by its run.json, "higher" or "lower"; empty if it does not say."""
    entries = document.get("metrics")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == metric and entry.get("better") in ("higher", "lower"):
            return str(entry["better"])
    return ""


def _take(document: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    value = document.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        words = {dict: "an object", str: "a text", int: "a whole number"}
        found = "nothing" if value is None else repr(value)[:40]
        raise UsageError(f"{path}: {key!r} should be {words[kind]}, found {found}")
    return value


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = printable(json.loads(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def printable(value: Any) -> Any:
    """`value` with every character replaced that would steer a terminal, hide text or not encode as UTF-8."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [printable(item) for item in value]
    return value


def _summary(summary: Any) -> dict[str, float]:
    entries = summary.items() if isinstance(summary, dict) else ()
    numbers = {name: number(entry.get("value")) for name, entry in entries if isinstance(entry, dict)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _status(folder: Path, document: dict[str, Any]) -> Status:
    if (folder / "FAILED.json").exists() or document.get("status") == "failed":
        return "failed"
    # DONE is written last: without it the summary may be half a run's.
    if (folder / "DONE").exists() and document.get("status") == "done":
        return "done"
    return "interrupted" if document.get("status") == "interrupted" else "running"


def _failure(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        failure = _read_object(path)
    except UsageError as error:
        return str(printable(str(error)))
    return f"rank {failure.get('rank', '?')}: {failure.get('error', 'no error recorded')}"


def number(value: Any) -> float:
    """`value` as a float; NaN for what is not a number or is too large to be one."""
    if type(value) is float:
        return value
    if type(value) is not int:  # a bool is an int, and no number
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def read_metrics(path: Path) -> Metrics:
    """The samples of one metrics.rank<r>.jsonl, whatever bytes it holds."""
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except OSError:
        lines = ["unreadable file", ""]
    rows: list[list[float]] = []
    evaluations: list[Evaluation] = []
    broken: list[int] = []
    for index, line in enumerate(lines):
        if not line or line.isspace():
            continue
        record = parse_line(line)
        row = [number(record.get(name)) for name in COLUMNS]
        if not (math.isfinite(row[0]) and math.isfinite(row[1])):  # it does not say when
            broken.append(index)
        elif "evaluation" in record:
            evaluations.append(Evaluation(row[0], row[1], numbers(record["evaluation"])))
        elif "recovered" not in record:
            rows.append(row)
    table = np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    return Metrics(
        rank=rank_of(path.name),
        columns={name: table[:, index] for index, name in enumerate(COLUMNS)},
        evaluations=tuple(evaluations),
        unreadable=len(broken) - (len(lines) - 1 in broken),
    )


def parse_line(line: str) -> dict[str, Any]:
    """The object on a line; an empty one where there is none."""
    try:
        record = _decode(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def numbers(values: Any) -> dict[str, float]:
    return {str(printable(key)): number(value) for key, value in values.items()} if isinstance(values, dict) else {}


def rank_of(name: str) -> int:
    digits = name.removeprefix("metrics.rank").removesuffix(".jsonl")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1
