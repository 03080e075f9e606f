"""Imports run one way, and the library needs none of what the laboratory needs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flatsparse

PACKAGE = Path(flatsparse.__file__).parent
# Who may import whom: only what stands earlier. A package counts as one; `flatsparse` itself gathers the library.
LAYERS = [
    *(
        "errors",
        "seeds",
        "scripts",
        "storage",
        "selection",
        "filters",
        "schedules",
        "shards",
        "kernel",
        "layers",
        "operations",
        "tracing",
        "channels",
        "constants",
        "shrinking",
        "masks",
        "eligible",
        "widths",
        "pruned",
        "health",
        "patterns",
        "criteria",
        "distributions",
        "saliency",
        "rules",
        "thinning",
        "redistribution",
        "rounds",
        "plan",
        "methods",
    ),
    *(
        "wrappers",
        "following",
        "gradient_checks",
        "window",
        "sharpness",
        "looksam",
        "report",
        "optimizer_state",
        "grown",
        "resuming",
        "training",
        "sparsifier",
        "flops",
        "landscape",
        "models",
        "curvature",
        "theory",
        "export",
    ),
    *("flatsparse", "lab", "cli", "__main__"),
]
HEAVY = [
    "tyro",
    "rich",
    "scipy",
    "matplotlib",
    "sklearn",
    "datasets",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "ray",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path):
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "flatsparse" if first == "__init__" else first


def only_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree):
    """The dotted name of everything a file imports, inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif only_for_types(node):
            yield from imports(ast.Module(node.orelse, []))
        else:
            yield from imports(node)


def imported_layers(source):
    """The layers of ours that a source imports; a name from the package's front counts as the front."""
    for name in imports(ast.parse(source)):
        package, _, rest = name.partition(".")
        if package == "flatsparse":
            first = rest.partition(".")[0]
            yield first if first in LAYERS else "flatsparse"


def test_every_file_has_its_layer():
    assert {layer(path) for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_layers_below(path):
    mine = layer(path)
    below = LAYERS[: LAYERS.index(mine)] + ([] if path.name in ("cli.py", "__main__.py") else [mine])
    assert set(imported_layers(path.read_text())) <= set(below)


def test_no_part_of_a_package_imports_its_front():
    for path in FILES:
        if path.parent != PACKAGE and path.name != "__init__.py" and layer(path) != "lab":
            assert f"flatsparse.{layer(path)}" not in {
                name.rpartition(".")[0] for name in imports(ast.parse(path.read_text()))
            }


def test_the_reader_of_imports_sees_functions_and_passes_over_types():
    source = """
        if TYPE_CHECKING:
            from flatsparse.cli import main
        import flatsparse.errors, numpy
        from flatsparse import InputError, masks
        def f():
            from flatsparse.lab.run import Run
    """
    lines = "\n".join(line[8:] for line in source.splitlines())
    assert list(imported_layers(lines)) == ["errors", "flatsparse", "masks", "lab"]


def test_importing_the_library_imports_nothing_of_the_laboratory():
    code = f"import sys, flatsparse; print([name for name in {[*HEAVY, 'flatsparse.lab']} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
