"""Trainings on hostile numbers: gradients given by hand, and what holds after every step, whatever they are.

No network is run, so that a case takes a hundredth of a second and every gradient is exactly what it says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsparse as fs
from flatsparse.common.seeds import generator
from flatsparse.sam.directions import DIRECTIONS
from flatsparse.sam.looksam import LookSAM
from flatsparse.sam.stalesam import StaleSAM
from tests.helpers import adamw, image_batch, masked, sgd, tiny_net
from tests.laws.test_methods import BY_CHANNELS, OPTIONS, SCORED_ON_DATA

STEPS, EVERY, ROUND_AT, RHO = 9, 3, 5, 0.1

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "none": (None, {}),
    **{name: (fs.S2SAM, {"direction": name}) for name in DIRECTIONS},
    "adaptive": (fs.S2SAM, {"adaptive": True}),
    "compact": (fs.S2SAM, {"compact": True}),
    "in place": (fs.S2SAM, {"in_place": True}),
    "unmasked": (fs.S2SAM, {"mask_perturbation": False}),
    "kernel": (fs.S2SAM, {"kernel": True}),
    "budget": (fs.S2SAM, {"budget": 0.02}),
    "stale": (StaleSAM, {}),
    "sam": (fs.SAM, {}),
    "adaptive sam": (fs.SAM, {"adaptive": True}),
    "budget of sam": (fs.SAM, {"budget": 0.02}),
    "looksam": (LookSAM, {"every": 2}),
}
BASES: dict[str, Any] = {
    "sgd": sgd,
    "adamw": adamw,
    "rprop": lambda ps, lr=0.01: torch.optim.Rprop(ps, lr=lr),  # which a NaN leaves as it was
}
NOT_ON_RPROP = {"momentum", "kernel"}  # it has no momentum, and no compiled step


@dataclass(frozen=True)
class Hazard:
    """What a step's gradients become.

    Attributes:
        change: gives one parameter's gradient from a good one, its mask and the parameter's number.
        finite: whether a gradient is still a number everywhere that is trained.
    """

    change: Callable[[Tensor, Tensor, int], Tensor | None]
    finite: bool = True


def _one(value: float) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Put a value in the first trained entry of the first parameter."""

    def change(g: Tensor, mask: Tensor, number: int) -> Tensor:
        if number == 0 and g.numel():
            g.view(-1)[mask.view(-1).nonzero()[0]] = value
        return g

    return change


def _outside(g: Tensor, mask: Tensor, number: int) -> Tensor:
    return torch.where(mask, g, math.nan)


HAZARDS = {
    "a NaN": Hazard(_one(math.nan), finite=False),
    "an infinity": Hazard(_one(-math.inf), finite=False),
    "NaN everywhere": Hazard(lambda g, mask, number: g * math.nan, finite=False),
    "NaN outside the masks": Hazard(_outside),
    **{f"{size:g} times": Hazard(lambda g, mask, number, size=size: g.sign() * size) for size in (1e18, 1e25, 1e38)},
    **{f"{size:g} times": Hazard(lambda g, mask, number, size=size: g.sign() * size) for size in (1e-15, 1e-38, 1e-44)},
    "zero": Hazard(lambda g, mask, number: g * 0),
    "a layer of zeros": Hazard(lambda g, mask, number: g * 0 if number == 0 else g),
    "a layer without": Hazard(lambda g, mask, number: None if number == 0 else g),
    "none at all": Hazard(lambda g, mask, number: None),
}


HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Odd(nn.Module):
    """Layers of one weight, of one row, of none."""

    def __init__(self) -> None:
        super().__init__()
        self.single, self.row = nn.Linear(1, 1), nn.Linear(6, 1, bias=False)
        self.plain, self.no_inputs, self.no_outputs = nn.Linear(6, 5), nn.Linear(0, 3), nn.Linear(4, 0)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        return self.plain(x[:, :6]) + self.row(x[:, :6]) + self.single(x[:, :1]) + self.no_inputs(x[:, :0]).sum(1, True)


def odd(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that a layer is empty
        torch.manual_seed(seed)
        return Odd()


@dataclass(frozen=True)
class Case:
    """A training, and the hazards by step."""

    kind: str = "previous"
    base: str = "sgd"
    method: str = "rigl"
    hazards: tuple[tuple[int, str], ...] = ()
    rho: float = RHO
    lr: float | None = None
    net: str = "tiny"
    start: int = 0  # steps that were taken before, of a run of 10¹²
    seed: int = 0

    @property
    def is_made(self) -> bool:
        """Whether there is such a training: not for channels of a net without any, and a base without momentum.

        Nor for a first step of no length along no gradient: torch.distributed.checkpoint takes that to make state, and it is
        not counted.
        """
        channels = self.net == "odd" and self.method in ("chex", "chase")
        channels |= self.net in HALF and (
            self.method in SCORED_ON_DATA or self.kind == "kernel"
        )  # nor on half a number
        pretended = self.lr == 0 and {(1, "zero"), (1, "none at all")} & {*self.hazards}
        return not (channels or pretended or (self.base == "rprop" and self.kind in NOT_ON_RPROP))


Parts = tuple[nn.Module, Any, fs.SparseTraining]


def made(case: Case, kind: str) -> Parts:
    """A model, its optimizer and its sparse training."""
    model = odd(case.seed) if case.net == "odd" else tiny_net(case.seed).to(HALF.get(case.net, torch.float32))
    base = BASES[case.base](model.parameters(), **({} if case.lr is None else {"lr": case.lr}))
    wrapper, options = KINDS[kind]
    optimizer = base if wrapper is None else wrapper(base, rho=case.rho, **options)
    method, settings = case.method, dict(OPTIONS.get(case.method, {}))
    if method == "chase":
        settings |= {"explore": "removable"}
    if hasattr(fs.METHODS[method], "every") and not case.start:
        settings["every"] = EVERY
    if method in SCORED_ON_DATA:
        settings |= {"batches": [image_batch(0, size=40)], "loss_fn": F.cross_entropy}
    if method == "grasp":
        settings["per_class"] = 4
    sparsity = None if method in BY_CHANNELS else 0.0 if method == "dense" else 0.8
    steps = 10**12 if case.start else STEPS
    training = fs.sparsify(model, optimizer, method, sparsity=sparsity, steps=steps, seed=case.seed, **settings)
    if case.start:
        training.load_state_dict({**training.state_dict(), "steps_taken": case.start})
    return model, optimizer, training


def feed(parts: Parts, case: Case, step: int, salt: int, hazard: Hazard | None) -> None:
    """Give every parameter its gradient of a step."""
    masks = {id(w): mask for w, mask in masked(parts[0], parts[2]).values()}
    for number, p in enumerate(parts[0].parameters()):
        source = generator(case.seed, step, number)
        g = torch.randn(p.shape, generator=source) + 0.3 * salt * torch.randn(p.shape, generator=source)
        mask = masks.get(id(p), torch.ones_like(p, dtype=torch.bool))
        given = g if hazard is None else hazard.change(g, mask, number)
        p.grad = None if given is None else given.to(p.dtype)
