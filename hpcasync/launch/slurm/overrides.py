"""SBATCH_* variables: sbatch obeys them rather than the lines of a script."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from hpcasync.launch.words import quoted

# Those that sbatch reads, of any version (https://slurm.schedmd.com/sbatch.html), by the option that they stand for.
_NAMED_AS_THE_OPTION = """
    account acctg-freq batch burst-buffer clusters constraint container container-id core-spec cpus-per-gpu delay-boot
    distribution error exclusive export get-user-env gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task
    gres gres-flags hint ignore-pbs input job-name mem-bind mem-per-cpu mem-per-gpu network no-kill no-requeue open-mode
    output overcommit partition power profile qos requeue reservation signal spread-job thread-spec threads-per-core
    tres-bind tres-per-task use-min-nodes wait wait-all-nodes wckey
"""
_OPTIONS = {f"SBATCH_{name.upper().replace('-', '_')}": name for name in _NAMED_AS_THE_OPTION.split()} | {
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_CPU_FREQ_REQ": "cpu-freq",
    "SBATCH_DEBUG": "verbose",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_WAIT4SWITCH": "switches",
}


def sbatch_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that are set and that sbatch reads."""
    return {name: environment[name] for name in sorted(environment) if name in _OPTIONS}


def told(variables: Mapping[str, str], flags: Iterable[str]) -> list[str]:
    """What each of :func:`sbatch_variables` does to a script with these ``flags``, on one line each."""
    given = {_option(flag.partition("=")[0].removeprefix("--")): flag for flag in flags}
    lines = []
    for name, value in variables.items():
        option = _OPTIONS[name]
        effect = f"overrides {given[_option(option)]}" if _option(option) in given else f"adds --{option}"
        lines.append(f"{name}={quoted(value)} is set: it {effect} (unset {name} to prevent it)")
    return lines


def _option(name: str) -> str:
    """--requeue and --no-requeue override each other."""
    return name.removeprefix("no-") if name.endswith("requeue") else name
