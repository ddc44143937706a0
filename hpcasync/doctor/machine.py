"""Cores, shared memory and clocks of this machine."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from hpcasync.doctor.finding import Finding, Verdict, said_bytes, said_seconds

SHARED_MEMORY = Path("/dev/shm")
_LITTLE_SHARED_BYTES = 128 << 20  # containers get 64 MiB unless asked for more
_FLOAT_BYTES = 4
_QUICK_CLOCKS = {"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase"}
_CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_READS = 1000
_COARSE_SECONDS = 1e-5
_WRONG_SECONDS, _FAR_WRONG_SECONDS = 1.0, 60.0


def cores(ranks: int, threads: int, cores: int, quota: float | None) -> Finding:
    """Ranks × threads against the cores that they may use on this node.

    Args:
        quota: CPUs that the control group may use on average; None if it has no limit.
    """
    needed = ranks * threads
    values = {"ranks": ranks, "threads": threads, "cores": cores, "quota": quota}
    told = f"{ranks} × {threads} (ranks × threads) on {cores} cores"
    if quota is not None and quota < min(needed, cores):
        return Finding(
            "cores",
            "problem",
            f"{told}, of which the container may use {quota:g} on average: ranks are stopped in turns",
            f"hpcasync run -n {max(int(quota / threads), 1)}, or give the container more CPUs",
            values,
        )
    if needed > cores:
        return Finding(
            "cores",
            "note",
            f"{told}: ranks take turns, and are bound to no core",
            f"for times that mean something: hpcasync run -n {max(cores // threads, 1)}, or fewer --threads",
            values,
        )
    return Finding("cores", "ok", f"{told}: each has its own", values=values)


def cpu_quota(file: Path = _QUOTA) -> float | None:
    """CPUs that the control group of this process may use on average; None if there is no limit."""
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    """Room for windows and gradients: ranks of a node exchange them there."""
    try:
        room = os.statvfs(folder)
    except OSError as error:
        return Finding(
            "shared memory", "problem", f"{folder}: {error.strerror}", f"mount a tmpfs on {folder}: windows live in it"
        )
    return judge_shared_memory(room.f_frsize * room.f_blocks, room.f_frsize * room.f_bavail)


def judge_shared_memory(size_bytes: int, free_bytes: int) -> Finding:
    values = {"size_bytes": size_bytes, "free_bytes": free_bytes}
    told = f"{said_bytes(free_bytes)} of {said_bytes(size_bytes)} are free in {SHARED_MEMORY}"
    if free_bytes < _LITTLE_SHARED_BYTES:
        advice = "in a container: --shm-size=8g; else remove what is left there, or mount -o remount,size=50%"
        return Finding("shared memory", "problem", f"{told}: windows of larger models will not fit", advice, values)
    told += f": {free_bytes / _FLOAT_BYTES / 1e6:,.0f} million float32 for all ranks' windows and gradients"
    return Finding("shared memory", "ok", told, values=values)


def clock() -> Finding:
    """The clock that every duration is taken with."""
    reads = [time.monotonic() for _ in range(_READS)]
    ticks = [after - before for before, after in itertools.pairwise(reads) if after > before]
    try:
        source = _CLOCK_SOURCE.read_text().strip()
    except OSError:
        source = "unknown"
    return judge_clock(min(ticks, default=1.0), (reads[-1] - reads[0]) / (_READS - 1), source)


def judge_clock(resolution_seconds: float, read_seconds: float, source: str) -> Finding:
    values = {"resolution_seconds": resolution_seconds, "read_seconds": read_seconds, "source": source}
    told = f"{source}: steps of {said_seconds(resolution_seconds)}, {said_seconds(read_seconds)} per reading"
    if resolution_seconds > _COARSE_SECONDS or source not in {*_QUICK_CLOCKS, "unknown"}:
        advice = f"times of short operations will be coarse; boot with clocksource=tsc (now {source}) if you can"
        return Finding("clock", "note", told, advice, values)
    return Finding("clock", "ok", told, values=values)


def judge_file_clock(offset_seconds: float) -> Finding:
    """The file system's clock against this machine's."""
    values = {"offset_seconds": offset_seconds}
    told = f"the file system's is {said_seconds(abs(offset_seconds))} {'ahead' if offset_seconds > 0 else 'behind'}"
    if abs(offset_seconds) < _WRONG_SECONDS:
        return Finding("wall clock", "ok", told, values=values)
    verdict: Verdict = "problem" if abs(offset_seconds) >= _FAR_WRONG_SECONDS else "note"
    advice = "times in files and on screen will not agree: have the machine's clock set (NTP, chrony)"
    return Finding("wall clock", verdict, told, advice, values)
