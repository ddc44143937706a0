"""What a bench leaves behind: ``results/<bench>-<time>/``.

bench.json (command, commit, packages, host), launches.jsonl (every launch and what it has measured, in the order in
which they ran), rows.json (medians, ratios and the values they are made of), table.md, plot.svg and plot.png; of a
launch that has failed, its log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcasync.bench.launches import Launch
from hpcasync.bench.plot import draw
from hpcasync.bench.rows import Row
from hpcasync.bench.rows_file import write_rows
from hpcasync.bench.table import markdown
from hpcasync.json_file import finite, write_json
from hpcasync.launch import environment
from hpcasync.run import provenance
from hpcasync.run.record import create_folder, timestamp

SCHEMA = "hpcasync.bench/1"


class Folder:
    """A fresh folder in ``results``. Nothing in it is ever overwritten by another bench."""

    def __init__(self, results: Path, bench: str, command: str) -> None:
        self.path = create_folder(results, None, bench)
        self._entries: dict[str, Any] = {
            "schema": SCHEMA,
            "bench": bench,
            "command": command,
            "git": provenance.git(Path(__file__).parent),
            "packages": provenance.packages(),
            "host": environment.host(0),
            "environment": environment.variables(),
            "started": timestamp(),
            "finished": None,
        }
        self._started = time.monotonic()
        write_json(self.path / "bench.json", self._entries)

    def add(self, launch: Launch, repeat: int, samples: Sequence[dict[str, Any]], error: str | None) -> None:
        """Write down a launch that has ended."""
        entry = {
            "repeat": repeat,
            "case": launch.case,
            "subject": launch.subject,
            "ranks": launch.ranks,
            "ended_seconds": time.monotonic() - self._started,
            "options": launch.options,
            "samples": samples,
            "error": error,
        }
        with (self.path / "launches.jsonl").open("a") as file:
            file.write(json.dumps(finite(entry), allow_nan=False, ensure_ascii=False) + "\n")

    def keep_log(self, launch: Launch, repeat: int, log: str) -> str:
        """Keep what a failed launch has printed; the file's name."""
        words = "-".join(f"{launch.case} {launch.subject} {repeat}".replace(",", "").split())
        (self.path / f"failed-{words}.log").write_text(log)
        return f"failed-{words}.log"

    def finish(self, rows: Sequence[Row], copy: Path | None) -> None:
        """Write what the launches amount to; the rows also to ``copy``."""
        entries = [row.entry() for row in rows]
        write_json(self.path / "rows.json", entries)
        (self.path / "table.md").write_text(markdown(rows), encoding="utf-8")
        draw(rows, self.path / "plot")
        self._entries["finished"] = timestamp()
        write_json(self.path / "bench.json", self._entries)
        if copy is not None:
            write_rows(copy, rows)
