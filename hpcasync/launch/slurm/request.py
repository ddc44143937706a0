"""What a job asks Slurm for: typed options, each with the pattern that Slurm accepts, and the #SBATCH lines they make.

sbatch does not read these lines as a shell would: quotes, backslashes and # have rules of their own. So no pattern
admits any of them, nor a space, and a line is what it looks like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from hpcasync.errors import UsageError

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_JOB = r"[0-9]+(_[0-9]+)?"
_INDICES = r"[0-9]+(-[0-9]+(:[0-9]+)?)?"
_GRES = rf"{NAME}(:{NAME})?(:[0-9]+[kKmMgGtTpP]?)?"
_GPUS = rf"({NAME}:)?[0-9]+"
_MAIL_TYPES = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT", "TIME_LIMIT", "TIME_LIMIT_90"),
    *("TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS"),
)


def _list(item: str, separator: str = ",") -> str:
    return f"{item}({separator}{item})*"


# Of every text option: what it may be, and how to say so.
_PATTERNS = {
    "job_name": (NAME, "letters, digits and _ . @ + -"),
    "time": (
        r"[0-9]+(:[0-9]{1,2}){0,2}|[0-9]+-[0-9]{1,2}(:[0-9]{1,2}){0,2}",
        "minutes, minutes:seconds, hours:minutes:seconds, days-hours, or days-hours:minutes[:seconds]",
    ),
    "partition": (_list(NAME), "a partition's name, or several with commas"),
    "account": (NAME, "an account's name"),
    "qos": (NAME, "a quality of service's name"),
    "mem": (r"[0-9]+[KMGTkmgt]?", "megabytes, or a number with K, M, G or T"),
    "gres": (_list(_GRES), "NAME[:TYPE][:COUNT], or several with commas"),
    "gpus": (_list(_GPUS), "[TYPE:]COUNT, or several with commas"),
    "constraint": (r"[A-Za-z0-9_(\[][A-Za-z0-9_.:,+&|*()\[\]-]*", "features joined by & | , * and brackets"),
    "array": (_list(_INDICES) + r"(%[0-9]+)?", "indices such as 0-15 or 1,3,5-9:2, with %N for N at a time"),
    "after": (_list(rf"{_JOB}(\+[0-9]+)?", ":"), "job ids such as 20 or 20:21_3, each with +MINUTES if wanted"),
    "afterok": (_list(_JOB, ":"), "job ids such as 20 or 20:21_3"),
    "afterany": (_list(_JOB, ":"), "job ids such as 20 or 20:21_3"),
    "mail": (r"[A-Za-z0-9_][A-Za-z0-9_.%+-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?", "a mail address or a user's name"),
    "mail_type": (_list(f"({'|'.join(_MAIL_TYPES)})"), f"of {' '.join(_MAIL_TYPES)}, with commas"),
}
_COUNTS = ("nodes", "tasks", "cpus_per_task", "signal_seconds")
_MOST_SIGNAL_SECONDS = 65535  # sbatch's
_SHARE = 3  # a time limit must be at least so many times as long as what follows the signal
# Options that are one of sbatch's, in the order of the script.
DIRECTIVES = {
    "job_name": "job-name",
    "nodes": "nodes",
    "tasks": "ntasks-per-node",
    "cpus_per_task": "cpus-per-task",
    "time": "time",
    "mem": "mem",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "gres": "gres",
    "gpus": "gpus",
    "constraint": "constraint",
    "array": "array",
}


@dataclass(kw_only=True)
class Request:
    """What sbatch calls by the same name (tasks: ntasks-per-node). None: as the partition has it, or not at all."""

    nodes: Annotated[int, arg(aliases=["-N"], metavar="N")] = 1
    """Nodes."""
    tasks: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Ranks on every node; needed, here or in the site file."""
    cpus_per_task: Annotated[int, arg(aliases=["-c"], metavar="N")] = 1
    """CPUs of every rank, and its compute threads."""
    time: Annotated[str | None, arg(aliases=["-t"], metavar="TIME", help_behavior_hint="")] = None
    """Time limit, e.g. 90 (minutes), 2:00:00 or 1-12 (days-hours)."""
    signal_seconds: Annotated[int, arg(metavar="N")] = 120
    """How long before the time limit the ranks begin to write a checkpoint."""
    mem: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="")] = None
    """Memory on every node, e.g. 16G."""
    partition: Annotated[str | None, arg(aliases=["-p"], metavar="NAME", help_behavior_hint="")] = None
    """Partition."""
    account: Annotated[str | None, arg(aliases=["-A"], metavar="NAME", help_behavior_hint="")] = None
    """Account to charge."""
    qos: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Quality of service."""
    gres: Annotated[str | None, arg(metavar="LIST", help_behavior_hint="")] = None
    """Generic resources on every node, e.g. gpu:2."""
    gpus: Annotated[str | None, arg(metavar="COUNT", help_behavior_hint="")] = None
    """GPUs of the whole job, e.g. 4 or a100:4."""
    constraint: Annotated[str | None, arg(aliases=["-C"], metavar="FEATURES", help_behavior_hint="")] = None
    """Features that the nodes must have, e.g. "icelake&ib"."""
    array: Annotated[str | None, arg(aliases=["-a"], metavar="INDICES", help_behavior_hint="")] = None
    """A job array, e.g. 0-15%4: indices 0 to 15, four at a time."""
    after: Annotated[str | None, arg(metavar="JOBS", help_behavior_hint="")] = None
    """Start after these jobs have started, e.g. 20:21 (20+5: five minutes after)."""
    afterok: Annotated[str | None, arg(metavar="JOBS", help_behavior_hint="")] = None
    """Start after these jobs have ended with exit code 0; never, if one has not."""
    afterany: Annotated[str | None, arg(metavar="JOBS", help_behavior_hint="")] = None
    """Start after these jobs have ended, however."""
    singleton: Annotated[bool, FlagCreatePairsOff] = False
    """Start after all your earlier jobs of this name have ended."""
    requeue: bool = True
    """Start again, from the last checkpoint, after a preemption, a failed node or the time limit."""
    mail: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Send mail about the job to this address."""
    mail_type: Annotated[str, arg(metavar="LIST")] = "END,FAIL,REQUEUE"
    """About what, with --mail."""
    job_name: Annotated[str | None, arg(aliases=["-J"], metavar="NAME", help_behavior_hint="")] = None
    """The job's name in the queue; default: the job file's."""

    def check(self) -> None:
        """Raises UsageError for the first value that Slurm would not accept, or that is more than a value."""
        for name in _COUNTS:
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{option(name)} {count}: it must be 1 or more")
        for name, (pattern, wanted) in _PATTERNS.items():
            text = getattr(self, name)
            if text is not None and not re.fullmatch(pattern, text, re.ASCII):
                raise UsageError(f"{option(name)} {text!r}: it must be {wanted}")
        self._check_time()

    def _check_time(self) -> None:
        """Ranks take a while to start, and Slurm may send the signal a minute early: steps need time before it."""
        if self.signal_seconds > _MOST_SIGNAL_SECONDS:
            raise UsageError(f"--signal-seconds {self.signal_seconds}: it must be {_MOST_SIGNAL_SECONDS} or less")
        least = _SHARE * self.signal_seconds
        if self.time is not None and 0 < _seconds(self.time) < least:
            raise UsageError(
                f"--time {self.time}: it must be {-(-least // 60)} minutes or more, {_SHARE} times --signal-seconds "
                f"({self.signal_seconds}), or no steps are made between the start and the last checkpoint"
            )

    def directives(self) -> list[str]:
        """The options as sbatch takes them; :meth:`check` has found nothing."""
        words = [f"--{DIRECTIVES[name]}={getattr(self, name)}" for name in DIRECTIVES if getattr(self, name)]
        conditions = [
            f"{name}:{getattr(self, name)}" for name in ("after", "afterok", "afterany") if getattr(self, name)
        ]
        conditions += ["singleton"] if self.singleton else []
        if conditions:
            words += [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"]
        if self.mail:
            words += [f"--mail-user={self.mail}", f"--mail-type={self.mail_type}"]
        return [*words, "--requeue" if self.requeue else "--no-requeue"]


def _seconds(time: str) -> int:
    """Of a time limit as sbatch reads it; 0: none."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)  # minutes[:seconds]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def option(name: str) -> str:
    """A field's name as it is written on the command line."""
    return f"--{name.replace('_', '-')}"
