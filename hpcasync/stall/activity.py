"""What the main thread of this process is doing, read from its Python stack: nothing has to be noted for it.

So it costs the ranks nothing between two looks, and it tells a job's own code from a wait for other ranks.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

TRAINING = "training"

_PACKAGE = Path(__file__).parent.parent
_WORLDS = (str(_PACKAGE / "mpi"), str(_PACKAGE / "horovod.py"))  # where a rank waits for others
_RUN = str(_PACKAGE / "run")
_DECORATOR = str(_PACKAGE / "mpi/failure.py")
_LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PHASES = {  # by the functions of hpcasync/run that are on the stack
    "_save": "writing a checkpoint",
    "_evaluate": "evaluating",
    "_come_to_rest": "draining",
    "finish": "ending",
    "recover": "recovering from a death",
}


@dataclass(frozen=True)
class Activity:
    """One moment.

    Attributes:
        phase: training, or what the run does between two steps.
        verb: of the World, in which the rank waits for others; empty while it does not.
        where: the line of the job's own code that has led there, for example "train.py:31 in train".
    """

    phase: str
    verb: str
    where: str


def main_thread() -> FrameType:
    """The frame in which the main thread is. Not to be kept: it holds everything that is on the stack."""
    ident = threading.main_thread().ident
    assert ident is not None
    return sys._current_frames()[ident]


def activity(frame: FrameType) -> Activity:
    """What a thread does whose innermost frame is ``frame``."""
    phase, verb, where = "", "", ""
    inner: FrameType | None = frame
    while inner is not None:
        file, name = inner.f_code.co_filename, inner.f_code.co_name
        if _is_start(file, name):
            break
        if file.startswith(_WORLDS) and file != _DECORATOR:
            verb = name  # the outermost: what was called, not what it calls
        elif file.startswith(_RUN):
            phase = phase or _PHASES.get(name, "")
        elif not where and _is_job(file):
            where = f"{Path(file).name}:{inner.f_lineno} in {name}"
        inner = inner.f_back
    return Activity(phase or TRAINING, "" if verb == "computed" else verb, where)


def stack(frame: FrameType) -> str:
    """The Python stack from the job's own code on, the innermost call last."""
    frames = traceback.extract_stack(frame)
    ours = [number for number, each in enumerate(frames) if _is_start(each.filename, each.name)]
    return "".join(traceback.format_list(frames[ours[-1] + 1 :] if ours else frames))


def _is_start(file: str, name: str) -> bool:
    """The function of hpcasync/run that calls the job's own, and then the run's end."""
    return name == "live" and file.startswith(_RUN)


def _is_job(file: str) -> bool:
    return not file.startswith((str(_PACKAGE), *_LIBRARIES, "<"))
