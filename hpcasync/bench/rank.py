"""What every rank of a launch runs: ``python -m hpcasync.bench.rank JSON``. Not for users; see ``launches.py``."""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpcasync.bench import training, verbs, wire
from hpcasync.launch.boxes import EXPLANATION
from hpcasync.mpi import MPIWorld, abort

MEASURES: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "training": training.measure,
    "one sided": verbs.one_sided,
    "busy target": verbs.busy_target,
    "between nodes": wire.between_nodes,
    "allreduce": verbs.allreduce,
    "step cost": verbs.step_cost,
}


def main() -> None:
    told = json.loads(sys.argv[1])
    # A rank that is stuck says where, whatever its thread of Python is doing, and ends the job.
    faulthandler.dump_traceback_later(told["timeout_seconds"], exit=True)
    torch.set_num_threads(1)
    world = MPIWorld()
    try:
        if world.size != told["ranks"]:
            raise RuntimeError(f"{told['ranks']} ranks were started, but MPI sees {world.size}: another MPI's launcher")
        samples = MEASURES[told["measure"]](world, told["repeat"], **told["options"])
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        print(f"{EXPLANATION}rank {world.rank}: {type(error).__name__}: {error}\n{text}", file=sys.stderr, flush=True)
        abort(1)
        return
    if world.rank == 0:
        Path(told["answer"]).write_text(json.dumps(samples))
    world.close()


if __name__ == "__main__":
    main()
