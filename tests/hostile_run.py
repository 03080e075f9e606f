"""The laws of trainings on hostile gradients, looked at in every step."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.sam.stalesam import StaleSAM
from tests.helpers import assert_zero_outside, masked, norm, same, shift, weights
from tests.hostile import HALF, HAZARDS, ROUND_AT, STEPS, Case, Hazard, Parts, feed, made
from tests.laws.test_methods import BY_CHANNELS, IN_ROUNDS


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
        kind = torch.finfo(self.true[0].dtype)
        if largest + reach > kind.max:  # then w + e is infinite
            return
        assert all(p.isfinite().all() for p in model.parameters()), "a perturbation is not finite"
        moved = shift(model, self.true)
        rounding = 8 * kind.eps * (largest + reach) * sum(w.numel() for w in self.true) ** 0.5
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
            feed(parts, case, step, calls, hazard)
            calls += 1
            return 0.0

        optimizer.step(closure)
    elif isinstance(optimizer, fs.S2SAM):
        with optimizer.perturbed():
            look()
            feed(parts, case, step, 0, hazard)
        part = {"part": lambda: feed(parts, case, step, 1, hazard)} if isinstance(optimizer, StaleSAM) else {}
        optimizer.step(**part)
    else:
        feed(parts, case, step, 0 if case.kind not in TWO or not case.rho else 1, hazard)
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
    ordinary = case.net not in HALF and all(
        p.isfinite().all() and (not p.numel() or p.abs().max() < 1e3) for p in model.parameters()
    )
    last = max((at for at, _ in case.hazards), default=0)
    free = case.kind in ("none", "adaptive", "adaptive sam", "looksam", "mask") or "budget" in case.kind
    if free or case.net in HALF or not ordinary or last > STEPS - 3 or case.method in IN_ROUNDS:
        return
    if isinstance(optimizer, fs.S2SAM) and not isinstance(optimizer, fs.SAM):
        with optimizer.perturbed():
            watch()
    if case.rho <= 1e3:
        assert abs(watch.lengths[-1] - case.rho) <= 1e-3 * case.rho + 1e-5, "weights are not perturbed again"
