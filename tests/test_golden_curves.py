"""Loss curves on digits, step by step, against those kept in ``golden/curves.txt``.

They are computed in float64 by one thread, and compared to seven digits, so that they hold on any processor: there the last
bits differ. ``golden/moved.py`` compares a change with the commit before it on one machine, to the bit, as CI does.
To move them on purpose, write the file anew, from the root of the repository: ``python -m tests.test_golden_curves``.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flatsparse as fs
from tests.golden.moved import WHAT_TO_DO, bits_of, moved
from tests.helpers import copied, same, sgd, tiny_net

FILE = Path(__file__).parent / "golden" / "curves.txt"
SOURCE = Path(__file__).parents[1] / "src"
RADIUS = "self.radius.of(group)"  # where the length of a perturbation is
STEPS, SIZE = 20, 16
METHODS = ("rigl", "set", "gmp")
SHARPNESS = {
    "none": lambda base: base,
    "sam": lambda base: fs.SAM(base, rho=0.1),
    "s2sam": lambda base: fs.S2SAM(base, rho=0.1),
}
CURVES = [f"{method}/{sharpness}" for method in METHODS for sharpness in SHARPNESS]


def digits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first scans of 0 to 4, as many as the run has steps for."""
    scans = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.from_numpy(scans.images).to(dtype) / 8 - 1, torch.from_numpy(scans.target).long()
    few = (labels < 5).nonzero().flatten()[: STEPS * SIZE]
    return images[few].unsqueeze(1), labels[few]


def curve(name: str, dtype: torch.dtype = torch.float64) -> list[float]:
    """The loss of each step, as its first forward has it, and then the loss on all images at the final weights."""
    images, labels = digits(dtype)
    method, sharpness = name.split("/")
    model = tiny_net().to(dtype)
    optimizer = SHARPNESS[sharpness](sgd(model.parameters(), lr=0.2))
    training = fs.sparsify(model, optimizer, method, sparsity=0.7, steps=STEPS, every=3)
    first, losses = copied(training.masks), []
    for inputs, targets in zip(images.split(SIZE), labels.split(SIZE), strict=True):
        passes = []

        def closure(inputs: Tensor = inputs, targets: Tensor = targets, passes: list[float] = passes) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            passes.append(loss.item())
            return loss

        if sharpness == "sam":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        losses.append(passes[0])
    assert not same(first, training.masks)
    model.eval()
    with torch.no_grad():
        return [*losses, F.cross_entropy(model(images), labels).item()]


def written(curves: dict[str, list[float]]) -> str:
    """The curves as a table: a row for each step and one for the end, ten significant digits."""
    rows = [["step", *curves]]
    for step, losses in enumerate(zip(*curves.values(), strict=True), start=1):
        rows.append([str(step) if step <= STEPS else "end", *(f"{loss:#.10g}" for loss in losses)])
    return "".join("  ".join(cell.rjust(4 if i == 0 else 12) for i, cell in enumerate(row)) + "\n" for row in rows)


def read() -> dict[str, list[float]]:
    names, *rows = [line.split()[1:] for line in FILE.read_text().splitlines()]
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}


def test_the_file_has_every_curve_whole():
    kept = read()
    assert list(kept) == CURVES
    assert {len(losses) for losses in kept.values()} == {STEPS + 1}
    assert len({tuple(losses) for losses in kept.values()}) == len(CURVES)
    assert written(kept) == FILE.read_text()


@pytest.mark.parametrize("name", CURVES)
def test_a_loss_curve_is_the_one_that_was_kept(name):
    found, wanted = curve(name), read()[name]
    odd = [
        step
        for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True), 1)
        if ours != pytest.approx(theirs, rel=1e-7)
    ]
    if odd:
        step = odd[0]
        pytest.fail(
            f"the losses of {name} moved from step {step} on: {wanted[step - 1]} became {found[step - 1]}; {WHAT_TO_DO}"
        )


def test_one_bit_that_moved_is_named_with_its_step():
    before = {"rigl/s2sam": [x.hex() for x in (1.5, 0.5)], "set/none": [x.hex() for x in (1.5, 0.25)]}
    after = {**before, "rigl/s2sam": [(1.5).hex(), math.nextafter(0.5, 1).hex()]}
    assert moved(before, before) == []
    assert moved(after, before) == ["rigl/s2sam: step 2, 0.5 became 0.5000000000000001"]


@pytest.mark.slow
def test_code_that_moves_a_bit_is_told_from_code_that_does_not(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "src")
    assert moved(bits_of(SOURCE), bits_of(tmp_path / "src")) == []
    file = tmp_path / "src" / "flatsparse" / "sam" / "perturbation.py"
    text = file.read_text(encoding="utf-8")
    assert RADIUS in text
    file.write_text(text.replace(RADIUS, f"{RADIUS} * (1 + 2**-52)"), encoding="utf-8")
    odd = moved(bits_of(tmp_path / "src"), bits_of(SOURCE))
    assert odd
    assert all("sam" in line for line in odd)  # without a perturbation nothing moves


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(written({name: curve(name) for name in CURVES}))
