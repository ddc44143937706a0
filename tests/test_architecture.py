"""The house plan, kept by reading the sources: imports point down, and every strategy says where it comes from."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest

from hpcasync.strategies import STRATEGIES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hpcasync"

# A module may import from its own layer's folder and from the layers before it.
LAYERS = (
    ("errors", "laws", "world"),
    ("clock", "replica", "staleness", "reduction", "aggregation", "topology", "partial"),
    ("mpi", "sim", "horovod", "faults", "trace", "compression", "strays"),
    ("strategies",),
    ("data", "models", "arguments", "launch", "json_file", "toml_file", "stall"),
    ("run", "report", "guide"),
    ("bench", "status", "sweep"),
    ("simulate", "doctor"),
    ("cli",),
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
WORLD_ONLY = {"mpi4py", "horovod", "threading", "time", "os", "multiprocessing", "asyncio"}
ENVIRONMENT_MAY_BE_READ_IN = {"mpi", "launch"}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, with "hpcasync.x.y" kept whole; imports for type checkers do not count."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "hpcasync"}
    return names


@pytest.mark.parametrize("folder", ["hpcasync", "jobs", "tests"])
def test_whatever_is_imported_is_a_declared_dependency(folder):
    """A package that happens to lie on the developer's machine is missing on the user's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = project["dependencies"] + extras["sweep"] + (extras["test"] if folder == "tests" else [])
    names = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in declared}
    names |= {"sklearn", "hpcasync", "tests", "horovod"}  # Horovod: whoever asks for it is told of `make horovod`
    used = {name.split(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imports(path)}
    assert used - names <= sys.stdlib_module_names | {"__future__"}


def layer_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "hpcasync" and len(parts) > 1 else None


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not {name for name in imports(path) if name.startswith("hpcasync")}
        return
    assert own in LEVEL, f"{own} is in no layer: name its place in this test"
    for name in imports(path):
        other = layer_of(name)
        if other and other in LEVEL and other != own:
            assert LEVEL[other] <= LEVEL[own], f"{path.name} (in {own}) imports {name}, which lies above it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "strategies").glob("*.py")), ids=lambda p: p.name)
def test_strategies_know_only_the_world(path):
    assert not {name.split(".")[0] for name in imports(path)} & WORLD_ONLY
    assert not {layer_of(name) for name in imports(path)} & {"mpi", "sim", "horovod", "faults"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_environment_is_read_in_few_places(path):
    if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in ENVIRONMENT_MAY_BE_READ_IN:
        return
    assert not re.search(r"\bos\.(environ|getenv)\b", path.read_text())


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_an_equation_a_source_and_a_place_in_the_readme(name):
    entry = STRATEGIES[name]
    text = inspect.getdoc(entry.cls) or ""
    assert re.search(r"^ {4}.*(<-|=).*$", text, re.MULTILINE), "no equation"
    assert re.search(r"(19|20)\d\d", text), "no citation with a year"
    assert entry.summary
    assert len(entry.hyperparameters()) <= 5
    assert entry.preset.keys() <= entry.hyperparameters().keys()
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    assert len(row.strip("|").split("|")) == 4
    source = re.search(r"\]\((hpcasync/[^)]+)\)", row)
    assert source
    assert (ROOT / source.group(1)).is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pickle_and_no_shell(path):
    text = path.read_text()
    assert not imports(path) & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    assert "shell=True" not in text
    assert "torch.load" not in text or "weights_only=True" in text
