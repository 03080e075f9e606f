"""Every statement of ``flatsparse.measure.theory`` against the real optimizers; each check fails for a wrong update."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.measure.theory import (
    descent_bound,
    descent_step,
    s2sam_path,
    s2sam_rest,
    sam_path,
    sam_rest,
    stability_step,
    theorem1,
    theorem1_appendix,
)
from flatsparse.schedules import InverseSqrt

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("benchmarks_theory", ROOT / "benchmarks" / "theory.py")
checks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checks)


def bowl(curvatures):
    return lambda w, _: (curvatures * w.square()).sum() / 2


@pytest.mark.parametrize("rho", [0.3, InverseSqrt(0.3)])
@pytest.mark.parametrize(("optimizer", "plain"), [(fs.S2SAM, s2sam_path), (fs.SAM, sam_path)])
def test_the_real_optimizers_walk_the_plain_path(optimizer, plain, rho):
    a = torch.linspace(0.2, 8, 10, dtype=torch.float64)
    real = checks.path(
        lambda w: optimizer(SGD(w, lr=0.1, weight_decay=0.05), rho=rho), checks.start(), checks.wavy(a), 60
    )
    torch.testing.assert_close(
        real, plain(lambda w: a * w.sin(), checks.start(), lr=0.1, rho=rho, steps=60, decay=0.05)
    )


@pytest.mark.parametrize(("lr", "rho"), [(0.1, 0.01), (0.1, 0.5), (0.4, 0.05)])
def test_fixed_radii_leave_a_ball_of_the_known_size(lr, rho):
    assert checks.rest_of("S²-SAM", lr, 2.0, rho) == pytest.approx(s2sam_rest(lr, 2.0, rho), rel=1e-3)
    assert checks.rest_of("SAM", lr, 2.0, rho) == pytest.approx(sam_rest(lr, 2.0, rho), rel=1e-3)


def test_the_known_sizes_are_those_that_were_published_of_it():
    assert (round(s2sam_rest(0.1, 2.0, 1.0), 3), round(sam_rest(0.1, 2.0, 1.0), 3)) == (0.447, 0.111)


def test_in_one_dimension_the_neighbour_comes_to_rest_on_the_minimum():
    walked = checks.path(checks.makers(0.1, 0.3)["S²-SAM"], checks.start(1), bowl(torch.tensor(2.0)), 60)
    assert abs(float(walked[-1])) == pytest.approx(0.3, rel=1e-4)


def test_radii_that_fall_with_the_root_of_the_step_lead_to_the_minimum():
    lr, rho, steps = 0.1, InverseSqrt(0.1), 2000
    for name, rest in (("S²-SAM", s2sam_rest), ("SAM", sam_rest)):
        walked = checks.path(checks.makers(lr, rho)[name], checks.start(), bowl(torch.tensor(2.0)), steps)
        assert float(walked[-1].norm()) == pytest.approx(rest(lr, 2.0, rho(steps)), rel=0.01)


@pytest.mark.parametrize("name", ["S²-SAM", "SAM", "random"])
def test_every_step_descends_as_smoothness_demands(name):
    for seed in range(5):
        a = 10 * torch.rand(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        walked = checks.path(checks.makers(0.1, 0.3)[name], checks.start(seed=seed), checks.wavy(a), 40)
        losses, slopes = (a * (1 - walked.cos())).sum(1), (a * walked.sin()).norm(dim=1)
        for before, slope, after in zip(losses[:-1], slopes, losses[1:], strict=False):
            assert after <= descent_step(float(before), float(slope), lr=0.1, smoothness=10.0, rho=0.3) + 1e-12


@pytest.mark.parametrize("name", ["S²-SAM", "SAM", "random"])
def test_on_a_round_bowl_at_the_largest_rate_descent_is_an_equality(name):
    """So a perturbation that is longer than ρ breaks the bound, and a shorter one or none does not reach it."""
    round_bowl, pull = (
        bowl(torch.tensor(10.0)),
        checks.start(seed=1),
    )  # the pull keeps S²-SAM off the line to the minimum
    walked = checks.path(
        checks.makers(0.1, 0.3)[name], checks.start(), lambda w, t: round_bowl(w, t) + (t == 0) * (pull @ w), 10
    )
    losses, slopes = 5 * walked.square().sum(1), 10 * walked.norm(dim=1)
    for step in range(1, 10):
        bound = descent_step(float(losses[step]), float(slopes[step]), lr=0.1, smoothness=10.0, rho=0.3)
        assert float(losses[step + 1]) == pytest.approx(bound, rel=1e-9)


def test_the_bound_of_a_run_is_the_sum_of_its_steps():
    loss, gap, slopes, rhos = 3.0, 3.0, [2.0, 1.0, 0.5], [0.0, 0.3, 0.2]
    for slope, rho in zip(slopes, rhos, strict=True):
        loss = descent_step(loss, slope, lr=0.1, smoothness=2.0, rho=rho)
    average = sum(slope**2 for slope in slopes) / 3
    assert average == pytest.approx(descent_bound(gap - loss, lr=0.1, smoothness=2.0, rhos=rhos))


def samples(seed, size=20):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 4, generator=source, dtype=torch.float64)
    return x, torch.randint(0, 2, (size,), generator=source).double() * 2 - 1


def logistic(x, y):
    """The loss of one sample a step: smooth with L = max ‖x‖²/4, its gradient at most B = max ‖x‖."""
    return lambda w, step: torch.nn.functional.softplus(-y[step % len(y)] * (x[step % len(y)] @ w))


def test_runs_whose_data_differ_in_one_sample_part_no_faster_than_the_recursion_allows():
    lr, rho, decay = 0.2, 0.1, 0.1
    for seed in range(5):
        x, y = samples(seed)
        others = x.clone()
        others[7] = samples(seed + 100)[0][7]
        norms = torch.cat([x, others]).norm(dim=1).max()

        def make(w):
            return fs.S2SAM(SGD(w, lr=lr, weight_decay=decay), rho=rho)

        one, other = (checks.path(make, checks.start(4), logistic(data, y), 100) for data in (x, others))
        apart = (one - other).norm(dim=1)
        assert float(apart[:8].max()) == 0 < float(apart[8])
        for step in range(100):
            known = {"lipschitz": float(norms)} if step % 20 == 7 else {}
            bound = stability_step(
                float(apart[step]), lr=lr, smoothness=float(norms) ** 2 / 4, rho=rho, decay=decay, **known
            )
            assert float(apart[step + 1]) <= bound


def test_the_recursion_needs_its_factor_of_smoothness():
    """Two runs on either side of a narrow bowl's minimum, a hair apart: S²-SAM parts them by just 2ηLρ."""
    lr, rho, smoothness, hair = 0.01, 0.1, 50.0, 1e-6
    start = torch.tensor([hair / 2], dtype=torch.float64)
    left, right = (
        checks.path(checks.makers(lr, rho)["S²-SAM"], s, bowl(torch.tensor(smoothness)), 2) for s in (-start, start)
    )
    before, after = (float((right[step] - left[step]).abs()) for step in (1, 2))
    bound = stability_step(before, lr=lr, smoothness=smoothness, rho=rho)
    assert bound * (1 - 1e-4) < after <= bound
    assert after > 40 * ((1 + lr * smoothness) * before + 2 * lr * rho)  # the lemma as it is printed


@pytest.mark.slow
def test_the_page_shows_what_is_measured():
    assert checks.PAGE.read_text() == checks.rendered(checks.PAGE.read_text())


CONSTANTS = {
    "lr": 0.01,
    "steps": 1000,
    "samples": 500,
    "smoothness": 4.0,
    "decay": 8.0,
    "polyak": 0.5,
    "lipschitz": 3.0,
}


def test_theorem1_by_hand_in_both_printed_forms():
    # 2 / (0.5 · 0.01 · 1000) + 0.01 · 12 · 5 / (2 · 0.5) + 19 / 500
    assert theorem1(2.0, **CONSTANTS, variance=5.0) == pytest.approx(0.4 + 0.6 + 0.038)
    # 2 / (0.5 · 0.01 · 1000) + (0.2 + 0.01 · 12 · 9) / (2 · 0.5) + (6 (3 + 499 · 0.2) + 1) / 500
    assert theorem1_appendix(2.0, **CONSTANTS, rho=0.2) == pytest.approx(0.4 + 1.28 + 617.8 / 500)


def test_without_a_radius_both_forms_of_theorem1_are_one_where_the_variance_is_the_squared_bound_of_gradients():
    assert theorem1_appendix(2.0, **CONSTANTS, rho=0.0) == pytest.approx(theorem1(2.0, **CONSTANTS, variance=9.0))


@pytest.mark.parametrize(
    "form", [lambda **c: theorem1(2.0, variance=5.0, **c), lambda **c: theorem1_appendix(2.0, rho=0.1, **c)]
)
def test_theorem1_falls_with_steps_samples_and_curvature_of_the_floor_and_rises_with_the_rest(form):
    base = form(**CONSTANTS)
    for name in ("steps", "samples", "polyak"):
        assert form(**{**CONSTANTS, name: 2 * CONSTANTS[name]}) < base
    for name in ("smoothness", "decay", "lipschitz"):
        assert form(**{**CONSTANTS, name: 2 * CONSTANTS[name]}) > base


def test_a_fixed_radius_leaves_what_no_data_and_no_steps_take_away():
    """The bound of App. C reaches the claimed rate only if ρ falls as well."""

    def bound(n, rho):
        rate = {**CONSTANTS, "lr": n**-0.5, "steps": n, "samples": n}
        return theorem1_appendix(2.0, **rate, rho=rho)

    assert bound(10**12, 0.1) == pytest.approx(0.1 / (2 * 0.5) + 6 * 0.1, abs=1e-3)
    assert bound(10**12, 10**-6) < 1e-2 * bound(10**4, 0.01)
    assert bound(10**8, 10**-4) / bound(10**6, 10**-3) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    "odd", [{"lr": 0.0}, {"polyak": 0.0}, {"samples": 0}, {"steps": 0}, {"lipschitz": float("nan")}]
)
def test_constants_that_no_bound_has_are_refused(odd):
    with pytest.raises(InputError, match=next(iter(odd))):
        theorem1(2.0, **{**CONSTANTS, **odd}, variance=5.0)
    with pytest.raises(InputError, match=next(iter(odd))):
        theorem1_appendix(2.0, **{**CONSTANTS, **odd}, rho=0.1)
