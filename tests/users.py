"""Commands as a user other than root, for tests that root runs."""

from __future__ import annotations

import functools
import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

USER = 65534  # nobody, and nogroup


def words_as_user() -> list[str]:
    """What is to stand before a command so that :data:`USER` runs it, with this Python and this repository.

    Where these lie below a folder that is closed to others, as /root is, the command sees an open one in its place that
    holds nothing but the way to them.
    """
    needed = [Path(sys.executable).absolute(), Path(sys.executable).resolve(), Path(__file__).absolute()]
    closed = {found for path in needed if (found := _closed_above(path)) is not None}
    lines = ["hold=$(mktemp -d)"]
    for parent, child in sorted(closed):
        names = [shlex.quote(str(path)) for path in (child, parent)]
        lines += [
            f'mount --bind {names[0]} "$hold" && mount -t tmpfs -o mode=755 none {names[1]}',
            f'mkdir {names[0]} && mount --bind "$hold" {names[0]}',
        ]
    lines.append(f'exec setpriv --reuid={USER} --regid={USER} --clear-groups "$@"')
    return ["unshare", "--mount", "sh", "-ec", "\n".join(lines), "sh"]


def _closed_above(path: Path) -> tuple[Path, Path] | None:
    """The outermost folder above ``path`` that others may not pass, and what of it leads on."""
    for parent, child in itertools.pairwise([*reversed(path.parents)]):
        if not parent.stat().st_mode & 0o001:
            return parent, child
    return None


@functools.cache
def why_no_user() -> str | None:
    """Why nothing can be run as another user here, or None when it can."""
    if os.geteuid() != 0:
        return "only root can become another user"
    told = subprocess.run([*words_as_user(), sys.executable, "-c", ""], capture_output=True, text=True, check=False)
    return f"no other user can run {sys.executable} here: {told.stderr.strip()}" if told.returncode else None
