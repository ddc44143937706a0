"""Shared memory that MPI processes which were killed have left behind."""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
START_SECONDS = 60.0  # by when every rank has mapped its neighbours' files

_File = tuple[int, int]  # device and inode


def shared_files(folder: Path = SHARED) -> dict[Path, os.stat_result]:
    """Open MPI's and MPICH's files in ``folder`` that belong to this user, and to this host as far as they say."""
    host = re.escape(socket.gethostname().partition(".")[0])
    ours = re.compile(rf"(sm_segment|osc_sm|osc_rdma)\.{host}[.\w-]*|mpich_shm_[0-9a-f]+_\d+")
    found = {}
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                status = path.lstat()
                if ours.fullmatch(path.name) and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    found[path] = status
    return found


def sweep(spared: Collection[Path] = (), older_seconds: float = START_SECONDS, folder: Path = SHARED) -> None:
    """Delete the :func:`shared_files` that no living process has mapped or open.

    While a rank lives, it has its own files mapped. The files are listed first, so whoever made one of them is seen.

    Args:
        spared: not these.
        older_seconds: and none that is younger: a process that this one cannot see, in another container with the same
            /dev/shm, may be about to map it.
    """
    oldest = time.time() - older_seconds
    found = {path: status for path, status in shared_files(folder).items() if path not in spared}
    unused = {(status.st_dev, status.st_ino): path for path, status in found.items() if status.st_mtime <= oldest}
    if not unused:
        return
    for process in Path("/proc").glob("[0-9]*"):
        for file in _used(process):
            unused.pop(file, None)
    for path in unused.values():
        with suppress(OSError):
            path.unlink()


def _used(process: Path) -> Iterator[_File]:
    """What a process has mapped or open. One that cannot be looked into belongs to somebody else, or is no rank."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            device, inode = line.split(maxsplit=5)[3:5]
            major, minor = (int(part, 16) for part in device.split(":"))
            yield os.makedev(major, minor), int(inode)
        for link in (process / "fd").iterdir():
            with suppress(FileNotFoundError):
                status = link.stat()
                yield status.st_dev, status.st_ino
