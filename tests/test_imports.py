"""Imports run one way, from the floors above to the floors below, and the library needs nothing of the extra `lab`."""

import ast
import graphlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flatsparse

PACKAGE = Path(flatsparse.__file__).parent
# A floor may import itself and what stands before it. A package is one floor; `flatsparse` itself gathers the library.
FLOORS = [
    *(
        "common",
        "schedules",
        "sam",
        "graph",
        "sparse",
        "methods",
        "models",
        "measure",
        "export",
        "acceleration",
        "task",
        "api",
        "diagnosis",
        "comparison",
        "health",
        "curvature",
    ),
    *("flatsparse", "experiments", "cli", "__main__"),
]
# The same within `experiments`.
EXPERIMENTS = [
    "labels",
    "stats",
    "equivalence",
    "metric",
    "compared",
    "clock",
    "terminal",
    "progress",
    "plotting",
    "claims",
    "pieces",
    "data",
    "tracking",
    "tasks",
    "run",
    "robustness_table",
    "robustness",
    "grid",
    "bench",
    "landscape",
    "evaluate",
    "export_checks",
    "export_edge",
    "export_forms",
    "export",
    "recipes",
    "reproduce",
    "comparison_table",
    "compare",
    "report",
    "scripts",
]
NEEDS_ONLY = {"sam": {"common", "schedules", "sam"}, "graph": {"common", "graph"}}
HEAVY = ["tyro", "rich", "scipy", "matplotlib", "sklearn", "datasets", "jinja2", "peft", "transformers"]
HEAVY += [
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "executorch",
    "torchao",
    "ray",
    "flatsparse.experiments",
    "flatsparse.cli",
]
LARGE_IN_TORCH = (
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
)


def floor(path):
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "flatsparse" if first == "__init__" else first


def imports(tree):
    """The dotted names of everything a file imports, inside functions too, but not for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.orelse, []))
        else:
            yield from imports(node)


def imported_floors(source):
    """The floors of ours that a source imports; a name from the package's front counts as the front."""
    for name in imports(ast.parse(source)):
        package, _, rest = name.partition(".")
        if package == "flatsparse":
            first = rest.partition(".")[0]
            yield first if first in FLOORS else "flatsparse"


def test_a_file_imports_only_from_its_own_floor_and_those_below():
    seen, upward = set(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        mine = floor(path)
        seen.add(mine)
        allowed = NEEDS_ONLY.get(mine, set(FLOORS[: FLOORS.index(mine) + 1]))
        upward += [
            f"{path.relative_to(PACKAGE)} imports {other}"
            for other in imported_floors(path.read_text())
            if other not in allowed
        ]
    assert upward == []
    assert seen == set(FLOORS)


def test_the_files_of_sam_import_each_other_one_way():
    graph = {}
    for path in sorted((PACKAGE / "sam").rglob("*.py")):
        own = ".".join(("flatsparse", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        assert "TYPE_CHECKING" not in path.read_text(), f"{own} hides an import"
        names = set(imports(ast.parse(path.read_text())))
        graph[own] = names | {name.rpartition(".")[0] for name in names}
    files = {
        own: {name for name in names if name in graph and name != own} - {"flatsparse.sam"}
        for own, names in graph.items()
    }
    assert len(files) > 10
    graphlib.TopologicalSorter(files).prepare()  # raises for a circle


def test_experiments_import_from_their_own_floor_and_those_below():
    root, upward, seen = PACKAGE / "experiments", [], set()
    for path in sorted(root.rglob("*.py")):
        mine = path.relative_to(root).parts[0].removesuffix(".py")
        if mine == "__init__":
            continue
        seen.add(mine)
        parts = [name.split(".") for name in imports(ast.parse(path.read_text()))]
        others = {part[2] for part in parts if part[:2] == ["flatsparse", "experiments"]}
        allowed = EXPERIMENTS[: EXPERIMENTS.index(mine) + 1]
        upward += [f"{path.relative_to(root)} imports {other}" for other in sorted(others.difference(allowed))]
    assert upward == []
    assert seen == set(EXPERIMENTS)


def test_the_reader_of_imports_sees_functions_and_passes_over_types():
    source = """
        if TYPE_CHECKING:
            from flatsparse.cli import main
        import flatsparse.common.errors, numpy
        from flatsparse import InputError, sparse
        def f():
            from flatsparse.experiments.run.config import RunConfig
    """
    lines = "\n".join(line[8:] for line in source.splitlines())
    assert list(imported_floors(lines)) == ["common", "flatsparse", "sparse", "experiments"]


IMPORTED = """
import gc, json, sys, torch
before, full = set(sys.modules), []
gc.callbacks.append(lambda phase, about: full.append(about) if phase == "start" and about["generation"] == 2 else None)
import flatsparse
print(json.dumps([sorted(set(sys.modules) - before), len(full), gc.isenabled()]))
"""


@pytest.fixture(scope="module")
def imported():
    """The modules that the library imports beside torch's, the full collections meanwhile, and whether there are any after it."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    call = [sys.executable, "-c", IMPORTED]
    return json.loads(subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout)


def test_importing_the_library_imports_nothing_of_the_extra(imported):
    names, _, _ = imported
    assert [name for name in names if name in HEAVY] == []


def test_importing_the_library_imports_little_beside_torch(imported):
    """Of torch no large part that it does not import itself; of others only small parts of the standard library."""
    names, _, _ = imported
    others = {name.partition(".")[0].lstrip("_") for name in names} - {"flatsparse", "torch", "safetensors"}
    assert others <= sys.stdlib_module_names | {name for name in others if name.startswith("sysconfigdata")}
    assert not others & {"asyncio", "sqlite3", "multiprocessing", "xml", "email", "http", "urllib", "concurrent"}
    assert not [name for name in names if name.startswith(LARGE_IN_TORCH)]
    assert len([name for name in names if not name.startswith("flatsparse")]) < 30


def test_importing_the_library_walks_through_no_objects_of_torch(imported):
    _, full_collections, collects_afterwards = imported
    assert (full_collections, collects_afterwards) == (0, True)
