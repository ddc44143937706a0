"""The demo, its page, its raw data and the README say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "results" / "image_classification"
RUNS = [json.loads(path.read_text()) for path in sorted(PAGE.glob("*/run.json"))]
README, TOLD = (ROOT / "README.md").read_text(), (PAGE / "README.md").read_text()


def demo() -> dict[str, float]:
    """{strategy: step size} as the Makefile has them."""
    found = re.search(r"^DEMO_RUNS = (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return {name: float(rate) for name, rate in (run.split(":") for run in found[1].split())}


def test_every_strategy_of_the_demo_is_published_with_its_step_size_and_the_same_seeds():
    found: dict[tuple[str, float], set[int]] = {}
    for run in RUNS:
        found.setdefault((run["strategy"]["name"], run["config"]["lr"]), set()).add(run["config"]["seed"])
    assert found.keys() == set(demo().items())
    (seeds,) = {frozenset(seeds) for seeds in found.values()}
    assert len(seeds) >= 5


def test_the_step_sizes_are_those_with_the_best_median():
    document = json.loads((PAGE / "step_sizes.json").read_text())
    for strategy, rate in demo().items():
        medians = {
            entry["lr"]: sorted(entry["seconds_to_target"])[2]
            for entry in document["rows"]
            if entry["strategy"] == strategy and None not in entry["seconds_to_target"]
        }
        assert rate == min(medians, key=lambda each: medians[each])


def test_the_readme_and_the_page_have_the_same_table_and_target():
    tables = [re.search(r"<!-- demo -->\n(.+)<!-- /demo -->", text, re.DOTALL) for text in (README, TOLD)]
    assert tables[0] and tables[1]
    assert tables[0][1] == tables[1][1]
    for run in RUNS:
        assert f"seconds to {run['config']['target']:g}" in tables[0][1]
        assert run["git"]["dirty"] is False
    makefile = (ROOT / "Makefile").read_text()
    assert (
        f"--target {RUNS[0]['config']['target']:g} --evaluate-every {RUNS[0]['config']['evaluate_every']}" in makefile
    )
