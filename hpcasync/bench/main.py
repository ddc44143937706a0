"""``hpcasync bench``: from its command line to the folder it leaves behind."""

from __future__ import annotations

import inspect
import random
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hpcasync.arguments import parse
from hpcasync.bench.benches import BENCHES
from hpcasync.bench.folder import Folder
from hpcasync.bench.launches import Launch, LaunchError, perform, require_peer
from hpcasync.bench.options import Options
from hpcasync.bench.rows import Sample, make_rows
from hpcasync.bench.rows_file import check_rows
from hpcasync.bench.table import terminal
from hpcasync.errors import UsageError
from hpcasync.launch import Launcher, find_launcher
from hpcasync.report.table import console, significant


def bench(words: Sequence[str]) -> int:
    """Run the bench that ``words`` name. 0; 1 when a launch has failed; 130 when interrupted.

    Raises:
        UsageError: an option that cannot be used; nothing has been measured then.
    """
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in BENCHES:
        raise UsageError(f"bench: unknown bench {words[0]!r}; the benches are {', '.join(BENCHES)}")
    kind = BENCHES[words[0]]
    purpose = inspect.cleandoc(kind.launches.__doc__ or "")
    options = parse(kind, words[1:], prog=f"hpcasync bench {kind.name}", description=f"{purpose}\n\n{kind.example}")
    plan, repeats = options.launches(), options.repeat_count()
    for peer in options.chosen_peers():
        require_peer(peer)
    if options.json is not None:
        check_rows(options.json)
    launcher = find_launcher()
    folder = Folder(options.results, options.name, shlex.join(["hpcasync", "bench", *words]))
    samples, interrupted = _measure(plan, repeats, launcher, folder)
    _show(options, samples, folder)
    if interrupted:
        return 130
    return 1 if any(sample.error for sample in samples) else 0


def usage() -> str:
    """What ``hpcasync bench --help`` prints."""
    lines = ["usage: hpcasync bench NAME ...", "", "Measure on this machine, into results/NAME-<time>/:", ""]
    for name, kind in BENCHES.items():
        purpose = inspect.cleandoc(kind.launches.__doc__ or "").splitlines()[0]
        lines += [f"  {name:11}{purpose}", f"{'':13}{kind.example}", ""]
    return "\n".join([*lines, "hpcasync bench NAME --help shows a bench's options."])


def _measure(plan: Sequence[Launch], repeats: int, launcher: Launcher, folder: Folder) -> tuple[list[Sample], bool]:
    """Everything ``repeats`` times, in another order each time; the samples in the plan's order, and whether an
    interrupt has cut it short. What a launch has measured is on disk before the next begins."""
    found: dict[tuple[int, int], list[Sample]] = {}
    interrupted = False
    try:
        with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="hpcasync-") as scratch:
            for repeat in range(repeats):
                order = list(range(len(plan)))
                random.Random(repeat).shuffle(order)
                for i, index in enumerate(order):
                    launch = plan[index]
                    count = f"{repeat * len(plan) + i + 1}/{repeats * len(plan)}"
                    entries, error = _launch(launcher, launch, repeat, Path(scratch), folder)
                    folder.add(launch, repeat, entries, error)
                    found[index, repeat] = _samples(launch, repeat, entries, error)
                    print(f"{count}  {launch.case}: {launch.subject}  {_outcome(entries, error)}", file=sys.stderr)
    except KeyboardInterrupt:
        interrupted = True
    return [sample for key in sorted(found) for sample in found[key]], interrupted


def _launch(
    launcher: Launcher, launch: Launch, repeat: int, scratch: Path, folder: Folder
) -> tuple[list[dict[str, Any]], str | None]:
    """(samples, None), or ([], why there are none); the log of a launch that failed is kept."""
    try:
        return perform(launcher, launch, repeat, scratch), None
    except LaunchError as failure:
        log = folder.keep_log(launch, repeat, failure.log)
        return [], f"{failure} (see {log})"


def _samples(launch: Launch, repeat: int, entries: Sequence[dict[str, Any]], error: str | None) -> list[Sample]:
    if error is not None:
        return [Sample(launch.case, launch.subject, launch.metric, launch.unit, repeat, None, error)]
    return [Sample(e["case"], e["subject"], e["metric"], e["unit"], repeat, e["value"]) for e in entries]


def _outcome(entries: Sequence[dict[str, Any]], error: str | None) -> str:
    if error is not None:
        return f"failed: {error}"
    if len(entries) > 2:
        return f"{len(entries)} values"
    return f"{significant(entries[0]['value'])} {entries[0]['unit']}"


def _show(options: Options, samples: Sequence[Sample], folder: Folder) -> None:
    rows = make_rows(options.name, samples, options.references)
    folder.finish(rows, options.json)
    console().print(terminal(rows))
    print(f"results: {folder.path}")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does: the launch ends, and what was measured is kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
