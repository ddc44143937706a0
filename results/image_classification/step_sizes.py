"""Train with every step size of a grid, on simulated ranks, with several seeds: seconds to the target of each.

    python results/image_classification/step_sizes.py step_sizes.json        # make step-sizes

Each training is a run of jobs/image_classification.py with the options below, and is the same every time. About
ten minutes of one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from image_classification import ImageClassification, train

from hpcasync.run import main

STRATEGIES = ("sync", "stale", "eager", "hogwild", "downpour")
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
SEEDS = range(5)
TARGET = 0.96
OPTIONS = "--world sim --ranks 4 --slow 3:4 --step-seconds 0.02 --evaluate-every 3 --seconds 40"


def seconds_to_target(strategy: str, rate: float, seed: int, results: Path) -> float | None:
    """None if the target is not reached."""
    name = f"{strategy}-{rate}-{seed}"
    words = f"{OPTIONS} --target {TARGET} --strategy {strategy} --lr {rate} --seed {seed} --results {results} --name {name}"
    try:
        main(train, ImageClassification, words.split())
    except SystemExit as end:
        if end.code:
            raise
    found = json.loads((results / name / "run.json").read_text())["summary"].get("seconds_to_target")
    return found and found["value"]


with tempfile.TemporaryDirectory() as folder:
    rows = [
        {
            "strategy": strategy,
            "lr": rate,
            "seconds_to_target": [seconds_to_target(strategy, rate, seed, Path(folder)) for seed in SEEDS],
        }
        for strategy in STRATEGIES
        for rate in RATES
    ]
document = {"options": OPTIONS, "target": TARGET, "seeds": list(SEEDS), "rows": rows}
Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")
