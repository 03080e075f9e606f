"""A program elsewhere is checked by the types of the public names: `mypy --strict` on a user's, of an installed package."""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import flatsparse

PACKAGE = Path(flatsparse.__file__).parent
CACHE = Path(__file__).parent.parent / ".mypy_cache" / "outside"  # torch takes half a minute to read

# Each revealed type stands behind it, without the modules of names.
RIGHT = """\
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import flatsparse as fs
from flatsparse import export, methods, models, schedules

model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
example = torch.randn(4, 8)


def closure() -> Tensor:
    loss: Tensor = model(example).square().mean()
    return loss


optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)
reveal_type(optimizer.follow(model))  # S2SAM
reveal_type(optimizer.step(closure))  # Tensor
optimizer.step()
optimizer.zero_grad()
with optimizer.perturbed():
    closure()
reveal_type(fs.SAM(torch.optim.AdamW(model.parameters()), rho=schedules.InverseSqrt(0.05)).step(closure))  # Tensor
training = fs.sparsify(model, optimizer, "rigl", sparsity=0.9, steps=100, every=10, include=["0"], exclude=[nn.Conv2d])
reveal_type(training)  # SparseTraining
reveal_type(training.masks)  # dict[str, Tensor]
reveal_type(training.sparsity)  # float
reveal_type(training.report().layers)  # tuple[LayerReport, ...]
training.load_state_dict(training.state_dict())
again = fs.sparsify(model, torch.optim.SGD(model.parameters()), methods.RigL(every=50), sparsity=0.5, steps=10)
for number in fs.rounds(again):
    reveal_type(number)  # int
reveal_type(fs.METHODS["rigl"])  # type[Method]
reveal_type(fs.masks_from(model))  # dict[str, Tensor]
fs.sparsify(model, optimizer, "static", masks=fs.masks_from("pruned.pt"), steps=10)
fs.save_masks("masks.safetensors", training.masks)
reveal_type(fs.load_masks(Path("masks.safetensors")))  # tuple[dict[str, Tensor], dict[str, str]]
accelerated = fs.accelerate(model, training)
reveal_type(accelerated.layers)  # dict[str, str]
accelerated.restore()
for finding in fs.doctor(model, optimizer, training):
    reveal_type(finding.cure)  # str
with fs.watching(model, optimizer, training) as findings:
    reveal_type(findings)  # list[Finding]
reveal_type(fs.estimate(model, example, "rigl", sparsity=0.9, steps=100).weights)  # int
reveal_type(fs.shrink(model, training.masks))  # Module
reveal_type(models.resnet20(num_classes=10))  # ResNetCIFAR
reveal_type(export.with_zeros(model, training.masks))  # Module
reveal_type(export.to_csr(model, training.masks))  # Module
export.save_csr("model.csr", export.to_csr(model, training.masks))
reveal_type(export.load_onnx(Path("model.onnx"))(example))  # Tensor
reveal_type(export.save_delta("delta.safetensors", model, model.state_dict()).changed)  # int
reveal_type(schedules.InverseSqrt(0.05)(7))  # float


def score(net: nn.Module, batches: Iterable[Tensor]) -> Mapping[str, float]:
    return {"error": sum(float(net(batch).abs().mean()) for batch in batches)}


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    mean: Tensor = net(batch).square().mean()
    return mean


task = fs.Task(lambda: nn.Linear(8, 1), [example], [example], loss, score, better="lower")
reveal_type(task.model())  # Module


def train(arm: object) -> dict[str, float]:
    return {"accuracy": 1.0}


reveal_type(fs.compare(train, seeds=3).row("s2sam").difference)  # Interval | None
reveal_type(fs.compare("mine.py:train").failures)  # tuple[str, ...]
try:
    fs.sparsify(model, optimizer, "rigl", sparsity=2, steps=1)
except fs.InputError as problem:
    print(problem)
"""

# Mistakes, each with the kind of its error behind it.
WRONG = """\
import torch
from torch import nn

import flatsparse as fs
from flatsparse import export, methods

model = nn.Linear(8, 4)
base = torch.optim.SGD(model.parameters(), lr=0.1)
training = fs.sparsify(model, base, "static", sparsity=0.5, steps=10)

fs.S2SAM(base, rho="0.05")  # arg-type
fs.S2SAM(torch.optim.SGD, rho=0.05)  # arg-type
fs.S2SAM(base, roh=0.05)  # call-arg
fs.SAM(base).step(lambda: None).item()  # attr-defined
fs.sparsify(model, base, "rigl", sparsity=0.9)  # call-arg
fs.sparsify(base, model, "rigl", sparsity=0.9, steps=10)  # arg-type
fs.sparsify(model, base, "rigl", sparsity="90 %", steps=10)  # arg-type
fs.sparsify(model, base, "rigl", sparsity=0.9, steps=10, outside="frosen")  # arg-type
fs.sparsify(model, base, methods.RigL, sparsity=0.9, steps=10)  # arg-type
methods.RigL(evry=50)  # call-arg
methods.RigL(every="often")  # arg-type
fs.masks_from(7)  # arg-type
training.sparsity = 0.9  # misc
training.mask  # attr-defined
fs.accelerate(model)  # call-arg
fs.doctor(model, training)  # arg-type
fs.Task(model, [], [], None, None)  # arg-type
fs.Task(lambda: model, [], [], lambda m, b: b, lambda m, b: {}, better="more")  # arg-type
export.save_csr(model, "model.csr")  # arg-type
export.with_zeros(model, [torch.ones(2)])  # arg-type
fs.rigl  # attr-defined
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python elsewhere in which the package is installed, as files beside others."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=sys.platform != "win32")
    scheme = "nt" if os.name == "nt" else "posix_prefix"
    purelib, scripts = (
        Path(sysconfig.get_path(kind, scheme, {"base": str(folder)})) for kind in ("purelib", "scripts")
    )
    shutil.copytree(PACKAGE, purelib / "flatsparse", ignore=shutil.ignore_patterns("__pycache__"))
    (purelib / "others.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return scripts / ("python.exe" if os.name == "nt" else "python")


def check(python, program, folder):
    """Return what mypy says of a program: its errors and the types that it reveals, each as (line, text)."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    strict = ["--strict", "--python-executable", str(python), "--cache-dir", str(CACHE), "--no-error-summary"]
    call = [sys.executable, "-m", "mypy", *strict, file.name]
    # Nothing is found by the way that this Python found it.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode in (0, 1), done.stderr
    said = re.findall(r"^program\.py:(\d+): (error|note): (.*)$", done.stdout, re.MULTILINE)
    assert not [line for line in done.stdout.splitlines() if not line.startswith("program.py:")], done.stdout
    errors = [(int(line), text) for line, kind, text in said if kind == "error"]
    revealed = [(int(n), t) for n, kind, t in said if kind == "note" and t.startswith("Revealed type is ")]
    return errors, [(n, re.sub(r"\b(?:\w+\.)+(?=\w)", "", t.split('"')[1])) for n, t in revealed]


def marked(program):
    """The lines of a program that end in a remark, with that."""
    lines = [(number, line.rpartition("  # ")) for number, line in enumerate(program.splitlines(), 1)]
    return [(number, remark) for number, (code, _, remark) in lines if code]


@pytest.mark.slow
def test_a_program_is_right_and_no_main_result_is_of_any_type(installed, tmp_path):
    errors, revealed = check(installed, RIGHT, tmp_path)
    assert errors == []
    assert revealed == marked(RIGHT)
    assert not [text for _, text in revealed if re.search(r"\bAny\b", text)]


def test_mistakes_are_errors(installed, tmp_path):
    errors, _ = check(installed, WRONG, tmp_path)
    found = {(line, re.search(r"\[([\w-]+)\]$", text)[1]) for line, text in errors}
    assert sorted(found) == marked(WRONG)


def test_without_the_mark_of_a_typed_package_nothing_is_known(installed, tmp_path):
    """So that the other tests are of what the package says of itself."""
    mark = next(installed.parents[1].rglob("flatsparse/py.typed"))
    mark.rename(mark.with_name("other.typed"))
    try:
        errors, _ = check(installed, "import flatsparse as fs\n", tmp_path)
    finally:
        mark.with_name("other.typed").rename(mark)
    assert "import-untyped" in errors[0][1]
