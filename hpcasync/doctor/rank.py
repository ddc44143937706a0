"""What both ranks of the doctor's launch run: ``python -m hpcasync.doctor.rank JSON``. Not for users; see ranks.py.

Rank 0 leaves in the file ``answer`` what it has found out. Where the ranks do not meet, or MPI does not grant what a
World needs, that is little; so every step of it is written down before the next is tried.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

from hpcasync.bench import verbs
from hpcasync.launch import environment
from hpcasync.mpi import MPIWorld
from hpcasync.mpi.failure import TOLERATED
from hpcasync.run.ping import ping

SIZE_BYTES = 4 << 20
_ROUNDS = 5
_SEEN_SECONDS = 5.0  # for a file of one node to be seen on another


def main() -> None:
    told = json.loads(sys.argv[1])
    faulthandler.dump_traceback_later(told["timeout_seconds"], exit=True)
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    answer = Answer(Path(told["answer"]), comm.rank)
    answer.add(
        library=" ".join(MPI.Get_library_version().splitlines()[0].split(",")[0].replace("Version:", "").split()),
        thread_level=MPI.Query_thread(),
        tolerated=TOLERATED,
        size=comm.size,
    )
    if comm.size != told["ranks"] or MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return
    places = comm.allgather(json.dumps(environment.host(comm.rank)))
    hosts = [json.loads(place) for place in places]
    answer.add(hosts=hosts)
    if len({host["host"] for host in hosts}) > 1:
        answer.add(shared_folder=_seen(comm, Path(told["results"])))
    world = MPIWorld()
    answer.add(progress=world.progress, node_size=world.node.size)
    found = ping(world)
    answer.add(latency_seconds=found["alpha_seconds"])
    for sample in verbs.one_sided(world, 0, sizes=[SIZE_BYTES], rounds=_ROUNDS):
        verb = sample["case"].split()[0]
        answer.add(**{f"{verb if sample['subject'] == verbs.OURS else 'copy'}_gigabytes_per_second": sample["value"]})
    for sample in verbs.allreduce(world, 0, subject=verbs.OURS, sizes=[SIZE_BYTES], rounds=_ROUNDS):
        name = {verbs.OURS: "allreduce", verbs.MPI_RAW: "mpi_allreduce"}.get(sample["subject"])
        answer.add(**({f"{name}_seconds": sample["value"] / 1e6} if name else {}))
    answer.add(complete=True)
    world.close()


class Answer:
    """A JSON file that grows, entry by entry; rank 0's."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path, self._writes = path, rank == 0
        self._entries: dict[str, Any] = {}

    def add(self, **entries: Any) -> None:
        self._entries |= entries
        if self._writes:
            draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")  # ranks that do not meet are all rank 0
            draft.write_text(json.dumps(self._entries))
            draft.replace(self._path)


def _seen(comm: MPI.Intracomm, results: Path) -> bool:
    """Does the last rank see what rank 0 creates in the folder?"""
    path = results / comm.bcast(f".hpcasync-doctor-{os.getpid()}")
    if comm.rank == 0:
        path.touch(mode=0o600)
    comm.Barrier()
    ends = time.monotonic() + _SEEN_SECONDS
    while not (seen := path.exists()) and time.monotonic() < ends:
        time.sleep(0.05)
    seen = all(comm.allgather(seen))
    if comm.rank == 0:
        path.unlink()
    return seen


if __name__ == "__main__":
    main()
