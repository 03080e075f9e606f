"""The theory checked with the real optimizers: measures, and writes the tables of docs/theory.md.

python benchmarks/theory.py
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import flatsparse as fs
from flatsparse.measure.theory import descent_bound, s2sam_rest, sam_rest
from flatsparse.schedules import InverseSqrt

PAGE = Path(__file__).parent.parent / "docs" / "theory.md"
Make = Callable[[list[nn.Parameter]], Optimizer]


def path(make: Make, start: Tensor, loss: Callable[[Tensor, int], Tensor], steps: int) -> Tensor:
    """The weights (steps + 1, n) of a real optimizer on a loss of weights and step, the first step being 0."""
    w = nn.Parameter(start.clone())
    optimizer, seen = make([w]), [start]
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            value = loss(w, step)
            value.backward()
            return value

        optimizer.step(closure)  # type: ignore[arg-type]  # torch's stubs want a float of it
        seen.append(w.detach().clone())
    return torch.stack(seen)


def makers(lr: float, rho: float | InverseSqrt) -> dict[str, Make]:
    """S²-SAM, SAM and S²-SAM along noise, over plain gradient descent."""
    return {
        "S²-SAM": lambda w: fs.S2SAM(SGD(w, lr=lr), rho=rho),
        "SAM": lambda w: fs.SAM(SGD(w, lr=lr), rho=rho),
        "random": lambda w: fs.S2SAM(SGD(w, lr=lr), rho=rho, direction="random"),
    }


def start(size: int = 10, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rest_of(name: str, lr: float, curvature: float, rho: float, steps: int = 1000) -> float:
    """The mean distance from the minimum of ``(a/2)‖w‖²`` in R¹⁰ over the last hundred steps."""
    walked = path(makers(lr, rho)[name], start(), lambda w, _: curvature / 2 * w.square().sum(), steps)
    return float(walked[-100:].norm(dim=1).mean())


def rest() -> list[list[str]]:
    rows = []
    for lr, rho in ((0.1, 0.05), (0.1, 0.5), (0.02, 0.05), (0.25, 0.05)):
        cells = [f"{lr:g}", f"{rho:g}"]
        for name, expected in (("S²-SAM", s2sam_rest(lr, 2.0, 1.0)), ("SAM", sam_rest(lr, 2.0, 1.0))):
            cells += [f"{rest_of(name, lr, 2.0, rho) / rho:.3f}", f"{expected:.3f}"]
        rows.append([*cells, f"{rest_of('random', lr, 2.0, rho) / rho:.2f}"])
    return rows


def falling(steps: int = 4000, c: float = 0.01) -> list[list[str]]:
    """Gradient norms of ‖w‖² after so many steps with ``ρ_t = √(c/t)``, beside what the last ρ alone would give."""
    lr, rho = 0.1, InverseSqrt(c**0.5)
    rows = []
    for name, rests in (("S²-SAM", s2sam_rest), ("SAM", sam_rest)):
        walked = path(makers(lr, rho)[name], start(), lambda w, _: w.square().sum(), steps)
        rows.append([name, f"{2 * float(walked[-1].norm()):.2e}", f"{2 * rests(lr, 2.0, rho(steps)):.2e}"])
    return rows


def wavy(curvatures: Tensor) -> Callable[[Tensor, int], Tensor]:
    """``Σ a_i (1 − cos w_i)``: not convex, smooth with L = max a, at least 0."""
    return lambda w, _: (curvatures * (1 - w.cos())).sum()


def descent(runs: int = 20, steps: int = 50, lr: float = 0.1, rho: float = 0.3) -> list[list[str]]:
    """The share of its bound that ``‖∇F‖²``, averaged over a run, comes to on nets of cosines with L = 10, so ``ηL = 1``."""
    rows = []
    for name in ("S²-SAM", "SAM", "random"):
        shares = []
        for seed in range(runs):
            a = 10 * torch.rand(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            a[0] = 10
            walked = path(makers(lr, rho)[name], start(seed=1000 + seed), wavy(a), steps)[:-1]
            squares = (a * walked.sin()).square().sum(1)
            gap = float(wavy(a)(walked[0], 0))
            rhos = [rho if name == "SAM" else 0.0] + [rho] * (steps - 1)  # the others' first step is unperturbed
            bound = descent_bound(gap, lr=lr, smoothness=10.0, rhos=rhos)
            shares.append(float(squares.mean()) / bound)
        rows.append([name, f"{max(shares):.2f}", str(sum(share <= 1 for share in shares)), str(runs)])
    return rows


TABLES: dict[str, tuple[tuple[str, ...], Callable[[], list[list[str]]]]] = {
    "rest": (("η", "ρ", "S²-SAM ‖w‖/ρ", "√(ηa)", "SAM ‖w‖/ρ", "ηa/(2 − ηa)", "random ‖w‖/ρ"), rest),
    "falling": (("", "‖∇F‖", "with the last ρ alone"), falling),
    "descent": (("", "largest share of the bound", "runs within it", "of"), descent),
}


def rendered(page: str) -> str:
    """The page with its tables measured anew."""
    for name, (head, measure) in TABLES.items():
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *measure())]
        page, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[2],  # type: ignore[misc]
            page,
            flags=re.DOTALL,
        )
        assert count == 1, f"{PAGE} has no place for table '{name}'"
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
