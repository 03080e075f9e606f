"""The scripts of examples/trainers: thirty lines each, and what they train is sparse at the end and in what they save."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples/trainers").glob("*.py"))
MOST = 30  # lines of a file
OPTIMIZER = r"fs\.S2SAM\("
TWO_LINES = (OPTIMIZER, r'fs\.sparsify\(\s*[\w.]+,\s*[\w.]+,\s*"static",\s*masks=')
ADAPTERS = {"peft_lora": (OPTIMIZER, r"fs\.mask_adapters\(")}  # which are trained in the place of weights

# Runs a script, and tells what the library warned of and what every training in the script holds at its end.
WATCH = """
import runpy, sys, warnings
import flatsparse.sparse.training as training_module

warn = warnings.warn
def telling(message, *rest, **options):
    if sys._getframe(1).f_globals["__name__"].startswith("flatsparse"):
        print("flatsparse-warns", message)
    warn(message, *rest, **options)
warnings.warn = telling

kept, init = [], training_module.SparseTraining.__init__
def noting(self, model, *rest, **options):
    init(self, model, *rest, **options)
    kept.append((self, model))
training_module.SparseTraining.__init__ = noting
runpy.run_path(sys.argv[1], run_name="__main__")
for training, model in kept:
    weights = [w for w in training.masked_weights if (~w.mask).any()]
    revived = sum(int(w.weight.detach()[~w.mask].count_nonzero()) for w in weights)
    trained = sum(int(w.weight.detach()[w.mask].count_nonzero()) for w in weights)
    print("flatsparse-test", len(weights), training.sparsity, training.steps_taken, revived, trained)
"""


def imported(file: Path) -> set[str]:
    """The packages that a script imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_short_and_shadows_no_package(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST
    assert text.startswith('"""')
    assert file.stem not in imported(file)
    assert all(re.search(line, text) for line in ADAPTERS.get(file.stem, TWO_LINES)), (
        f"{file.name} does not show the two lines"
    )
    assert "assert " in text


def run(file: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python on a script, if its packages are there."""
    if missing := [name for name in sorted(imported(file)) if find_spec(name) is None]:
        pytest.skip(f"{file.name} is a script for {', '.join(missing)}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    whole = [sys.executable, *command, str(file)]
    ran = subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_ends_sparse(file, tmp_path):
    ran = run(file, tmp_path, "-c", WATCH)
    lines = re.findall(r"^flatsparse-test (\d+) ([\d.]+) (\d+) (\d+) (\d+)$", ran.stdout, flags=re.MULTILINE)
    assert len(lines) == (file.stem not in ADAPTERS), "the script makes one sparse training"
    for layers, sparsity, steps, revived, trained in lines:
        assert int(layers) > 0
        assert float(sparsity) >= 0.5
        assert int(steps) > 1
        assert int(revived) == 0
        assert int(trained) > 0
    assert "flatsparse-warns" not in ran.stdout, ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_doctor_finds_nothing_in_an_example(file, tmp_path):
    assert "no findings" in run(file, tmp_path, "-m", "flatsparse", "doctor").stdout
