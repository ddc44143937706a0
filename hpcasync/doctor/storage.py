"""The file system in which runs make their folders: its kind, its room, and whether it keeps its promises."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcasync.doctor.finding import Finding, Verdict, said_bytes, said_seconds
from hpcasync.doctor.machine import judge_file_clock

_LITTLE_BYTES, _SMALL_BYTES = 1 << 30, 10 << 30
_SLOW_SECONDS = 0.25
_FLEETING = {"tmpfs", "ramfs", "overlay"}
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Storage:
    """What was found out about a folder's file system.

    Attributes:
        exclusive: a second creation of a file (O_EXCL) fails.
        replaces: a rename puts a file in another's place.
        locks: flock keeps a second lock out.
        sync_seconds: for a small file to be written and synced.
        clock_seconds: how far a new file's time is ahead of this machine's.
    """

    folder: str
    kind: str
    free_bytes: int
    exclusive: bool
    replaces: bool
    locks: bool
    sync_seconds: float
    clock_seconds: float


def storage(results: Path) -> list[Finding]:
    """Try the file system of ``results``, or of the folder in which it would be made."""
    folder = existing(results)
    try:
        found = examine(folder)
    except OSError as error:
        told = f"{folder}: {error.strerror}"
        return [Finding("run directory", "problem", told, "choose a --results folder in which you may write")]
    return [judge_storage(found), judge_file_clock(found.clock_seconds)]


def existing(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def examine(folder: Path) -> Storage:
    """Raises OSError where nothing can be written. Leaves nothing behind."""
    scratch = Path(tempfile.mkdtemp(prefix=".hpcasync-doctor-", dir=folder))
    try:
        began = time.monotonic()
        _write(scratch / "first", os.O_CREAT | os.O_EXCL)
        sync_seconds = time.monotonic() - began
        _write(scratch / "second", os.O_CREAT)
        clock_seconds = (scratch / "second").stat().st_mtime - time.time()
        return Storage(
            folder=str(folder),
            kind=kind(folder, _MOUNTS.read_text()),
            free_bytes=shutil.disk_usage(folder).free,
            exclusive=_fails(lambda: _write(scratch / "first", os.O_CREAT | os.O_EXCL)),
            replaces=_replaces(scratch / "first", scratch / "second"),
            locks=_locks(scratch / "second"),
            sync_seconds=sync_seconds,
            clock_seconds=clock_seconds,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def judge_storage(found: Storage) -> Finding:
    """Is it what runs and their checkpoints need?"""
    told = (
        f"{found.folder}: {found.kind}, {said_bytes(found.free_bytes)} free, {said_seconds(found.sync_seconds)} to sync"
    )

    def finding(verdict: Verdict, more: str, advice: str) -> Finding:
        return Finding("run directory", verdict, f"{told}; {more}" if more else told, advice, asdict(found))

    if not (found.exclusive and found.replaces):
        broken = "rename" if found.exclusive else "exclusive creation"
        return finding("problem", f"{broken} does not work", "put --results on a POSIX file system: runs rely on it")
    if found.free_bytes < _LITTLE_BYTES:
        return finding("problem", "almost full", "make room, or choose another --results")
    if found.free_bytes < _SMALL_BYTES:
        return finding("note", "not much room", "checkpoints of large models may not fit")
    if not found.locks:
        return finding("note", "flock does not work", "ask for a mount with locks (Lustre: flock) if a tool needs it")
    if found.sync_seconds > _SLOW_SECONDS:
        return finding("note", "slow to sync", "checkpoints take their time: make them seldom")
    if found.kind in _FLEETING:
        return finding(
            "note", "gone when the machine or container is", "copy results away, or choose another --results"
        )
    return finding("ok", "", "")


def kind(folder: Path, mounts: str) -> str:
    """The type of the file system that ``folder`` is in; ``mounts`` is the text of /proc/self/mountinfo."""
    found, longest = "unknown", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = after.split()[0], len(point.parts)
    return found


def _write(path: Path, flags: int) -> None:
    file = os.open(path, flags | os.O_WRONLY, 0o600)
    try:
        os.write(file, path.name.encode())
        os.fsync(file)
    finally:
        os.close(file)


def _fails(operation: Callable[[], None]) -> bool:
    try:
        operation()
    except FileExistsError:
        return True
    return False


def _replaces(source: Path, target: Path) -> bool:
    try:
        source.replace(target)
    except OSError:
        return False
    return not source.exists() and target.read_text() == source.name


def _locks(path: Path) -> bool:
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
