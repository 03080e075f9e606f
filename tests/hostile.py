"""Trainings on hostile numbers: gradients given by hand, and what holds after every step, whatever they are.

No network is run, so that a case takes a hundredth of a second and every gradient is exactly what it says.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.sam.directions import DIRECTIONS
from flatsparse.sam.looksam import LookSAM
from flatsparse.sam.stalesam import StaleSAM
from tests.helpers import adamw, assert_zero_outside, image_batch, masked, norm, same, sgd, shift, tiny_net, weights
from tests.laws.test_methods import BY_CHANNELS, IN_ROUNDS, OPTIONS, SCORED_ON_DATA

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
        pretended = self.lr == 0 and {(1, "zero"), (1, "none at all")} & {*self.hazards}
        return not (channels or pretended or (self.base == "rprop" and self.kind in NOT_ON_RPROP))


Parts = tuple[nn.Module, Any, fs.SparseTraining]


def made(case: Case, kind: str) -> Parts:
    """A model, its optimizer and its sparse training."""
    model = tiny_net(case.seed) if case.net == "tiny" else odd(case.seed)
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


def _feed(parts: Parts, case: Case, step: int, salt: int, hazard: Hazard | None) -> None:
    """Give every parameter its gradient of a step."""
    masks = {id(w): mask for w, mask in masked(parts[0], parts[2]).values()}
    for number, p in enumerate(parts[0].parameters()):
        source = generator(case.seed, step, number)
        g = torch.randn(p.shape, generator=source) + 0.3 * salt * torch.randn(p.shape, generator=source)
        mask = masks.get(id(p), torch.ones_like(p, dtype=torch.bool))
        p.grad = g if hazard is None else hazard.change(g, mask, number)


class Watch:
    """Looks at the weights while they are perturbed: the perturbation is no longer than ρ, in the masks, and finite.

    Attributes:
        lengths: of the perturbations so far.
    """

    def __init__(self, parts: Parts, case: Case) -> None:
        self.parts, self.case, self.lengths = parts, case, [0.0]
        self.true = weights(parts[0])

    def __call__(self) -> None:
        model, _, training = self.parts
        if not all(w.isfinite().all() for w in self.true):
            return
        largest = max(float(w.abs().max()) for w in self.true if w.numel())
        reach = self.case.rho * (largest + 0.01 if "adaptive" in self.case.kind else 1.0)
        if largest + reach > torch.finfo(torch.float32).max:  # then w + e is infinite
            return
        assert all(p.isfinite().all() for p in model.parameters()), "a perturbation is not finite"
        moved = shift(model, self.true)
        rounding = 1e-6 * (largest + reach) * sum(w.numel() for w in self.true) ** 0.5
        self.lengths.append(norm(moved))
        assert self.lengths[-1] <= reach * 1.001 + rounding, "a perturbation is too long"
        if self.case.kind != "unmasked":
            for w, mask in masked(model, training).values():
                assert not w[~mask].any(), "a perturbation is outside the masks"


def _step(parts: Parts, case: Case, step: int, look: Callable[[], None], hazard: Hazard | None) -> None:
    optimizer = parts[1]
    if isinstance(optimizer, fs.SAM):
        calls = 0

        def closure() -> float:
            nonlocal calls
            look()
            _feed(parts, case, step, calls, hazard)
            calls += 1
            return 0.0

        optimizer.step(closure)
    elif isinstance(optimizer, fs.S2SAM):
        with optimizer.perturbed():
            look()
            _feed(parts, case, step, 0, hazard)
        part = {"part": lambda: _feed(parts, case, step, 1, hazard)} if isinstance(optimizer, StaleSAM) else {}
        optimizer.step(**part)
    else:
        _feed(parts, case, step, 0 if case.kind not in TWO or not case.rho else 1, hazard)
        optimizer.step()


TWO = {"sam", "adaptive sam", "budget of sam"}  # whose base has the second gradient


def run(case: Case) -> list[str]:
    """Run a case beside the base alone, which gets the same gradients, and check every step. Returns the warnings.

    Raises: AssertionError for what does not hold.
    """
    assert case.is_made
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        parts, plain = made(case, case.kind), made(case, "none")
        counts = active_counts(case.method, case.net, case.start)
        watch = Watch(parts, case)
        hazards = {at: HAZARDS[name] for at, name in case.hazards}
        for step in range(1, STEPS + 1):
            if case.method in IN_ROUNDS and step == ROUND_AT and not case.start:
                if not _next_round(parts, plain):
                    break
                watch.true = weights(parts[0])
            hazard = hazards.get(step)
            _step(parts, case, step, watch, hazard)
            _step(plain, case, step, lambda: None, hazard)
            watch.true = weights(parts[0])
            _check(case, parts, plain, counts[step - 1])
        _check_recovery(case, parts, watch)
    assert not any("\n" in str(w.message) for w in told)
    return [str(w.message) for w in told]


@functools.cache
def active_counts(method: str, net: str, start: int) -> list[int | None]:
    """How many weights are active after each step of a run on good gradients; None where that depends on them."""
    if method in BY_CHANNELS | {"chase"}:
        return [None] * STEPS
    case, counts = Case(method=method, net=net, start=start), []
    parts = made(case, "none")
    for step in range(1, STEPS + 1):
        if method in IN_ROUNDS and step == ROUND_AT and not start:
            parts[2].next_round()
        _step(parts, case, step, lambda: None, None)
        counts.append(parts[2].masked_weights.active)
    return counts


def _next_round(parts: Parts, plain: Parts) -> bool:
    """Go on to the next round, or be told why not in one line: weights that are not finite."""
    refused = ""
    try:
        parts[2].next_round()
    except InputError as problem:
        refused = str(problem)
    finite = all(p.isfinite().all() for p, _ in masked(parts[0], parts[2]).values())
    assert ("not finite" in refused) != finite
    assert "\n" not in refused
    if refused:
        return False
    plain[2].next_round()
    return True


def _check(case: Case, parts: Parts, plain: Parts, count: int | None) -> None:
    model, optimizer, training = parts
    exempt = ("perturbed",) if case.kind == "unmasked" else ()
    assert_zero_outside(model, training, optimizer, (*exempt, "step_size"))
    live = sum(int(mask.sum()) for mask in training.masks.values())
    assert training.masked_weights.active == live
    assert count in (live, None), "the number of active weights is not that of a good run"
    if case.kind in ("looksam", "kernel"):  # another gradient, other rounding
        return
    if all(p.isfinite().all() for p in plain[0].parameters()):
        assert all(p.isfinite().all() for p in model.parameters()), "weights are not finite, and the base's are"
    assert same(weights(model), weights(plain[0])), "weights are not the base's"
    assert same(dict(training.masks), dict(plain[2].masks)), "masks are not those of the base alone"


def _check_recovery(case: Case, parts: Parts, watch: Watch) -> None:
    """Weights that are numbers of an ordinary size are perturbed again after good steps, by all of ρ."""
    model, optimizer, _ = parts
    ordinary = all(p.isfinite().all() and (not p.numel() or p.abs().max() < 1e3) for p in model.parameters())
    last = max((at for at, _ in case.hazards), default=0)
    free = case.kind in ("none", "adaptive", "adaptive sam", "looksam", "mask") or "budget" in case.kind
    if free or not ordinary or last > STEPS - 3 or case.method in IN_ROUNDS:
        return
    if isinstance(optimizer, fs.S2SAM) and not isinstance(optimizer, fs.SAM):
        with optimizer.perturbed():
            watch()
    if case.rho <= 1e3:
        assert abs(watch.lengths[-1] - case.rho) <= 1e-3 * case.rho + 1e-5, "weights are not perturbed again"
