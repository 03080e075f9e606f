"""The study over sparsity: its choices, slopes and ratios beside their plain forms, and its page beside its data."""

import doctest
import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.stats import holm, mean_interval, p_value
from flatsparse.measure.surface import direction
from tests.benchmark_scripts import importable

NAMES = ("sweep", "sweep_claims", "sweep_page", "sweep_picture", "planned", "judged")


@pytest.fixture(scope="module")
def study():
    """The scripts of the study, by name."""
    with importable():
        import sweep
        import sweep_claims
        import sweep_page
        import sweep_picture

        yield SimpleNamespace(runs=sweep, claims=sweep_claims, page=sweep_page, picture=sweep_picture)


def line(cell, *, sharper=1.0, flatter=0.5):
    """A made-up line: validation is best at ρ 0.2, the gain grows with sparsity, plain nets at 98 % are sharper than dense."""
    place, seed, s2sam = cell.place, cell.seed, cell.rho is not None
    wobble = (7 * seed + 3 * len(place.method)) % 5 / 10
    tenfolds = -math.log10(1 - place.sparsity)
    gain = (0.5 + tenfolds + (seed % 3) / 10) * (2 if place.noise else 1) if s2sam else 0.0
    sharp = 10 ** (sharper * tenfolds) * (1 + wobble) * (flatter * (1 + seed % 3 / 10) if s2sam else 1)
    measures = {"largest": sharp, "smallest": -sharp / 10, "ra": sharp / 5}
    return {
        **cell.identity,
        "validation": 80 + wobble + (1 if cell.rho == 0.2 else 0),
        "test": 80 + wobble + gain,
        "train_accuracy": 99.0,
        "active": measures,
        "all": {name: 3 * value for name, value in measures.items()},
    }


def made_up(sweep, **shape):
    found = []
    for part in sweep.places():
        found += [line(cell, **shape) for cell in sweep.choices(part)]
        found += [line(cell, **shape) for cell in sweep.compared(part, found)]
    return found


@pytest.fixture(scope="module")
def lines(study):
    return made_up(study.runs)


def test_rho_is_chosen_on_other_seeds_and_the_smaller_of_equals(study, lines):
    sweep = study.runs
    assert len(lines) == sweep.planned() == 180 + 240 + 72 + 240
    places, _ = sweep.places()
    assert set(sweep.chosen(places, lines).values()) == {0.2}
    level = [{**one, "validation": 80.0} for one in lines]
    assert set(sweep.chosen(places, level).values()) == {0.05}
    only_compared = [
        {**one, "validation": 90.0 if one["rho"] == 1.0 and one["seed"] in sweep.SEEDS else 80.0} for one in level
    ]
    assert set(sweep.chosen(places, only_compared).values()) == {0.05}
    assert set(sweep.SEEDS).isdisjoint(sweep.SWEEP_CHOICE + sweep.ROUNDS_CHOICE)


def accuracies(lines, method, sparsity, noise, rho, share=None):
    found = {
        one["seed"]: one["test"]
        for one in lines
        if (one["method"], one["sparsity"], one["share"], one["noise"], one["rho"])
        == (method, sparsity, share, noise, rho)
    }
    return np.array([found[seed] for seed in range(10)])


def test_gains_and_their_slopes_are_by_seed_and_corrected_over_all_of_them(study, lines):
    found = study.claims.gain_claims(study.claims.by_place(lines))
    every = []
    for noise in (0.0, 0.2):
        gains = []
        for sparsity in study.runs.SPARSITIES:
            method = "rigl" if sparsity else "dense"
            gains.append(
                accuracies(lines, method, sparsity, noise, 0.2) - accuracies(lines, method, sparsity, noise, None)
            )
            assert found[noise, sparsity].gaps == pytest.approx(gains[-1])
        tenfolds = np.log10([1 / (1 - sparsity) for sparsity in study.runs.SPARSITIES])
        slopes = [np.polyfit(tenfolds, [own[seed] for own in gains], 1)[0] for seed in range(10)]
        assert found[noise, "slope"].gaps == pytest.approx(slopes)
        assert statistics.fmean(slopes) == pytest.approx(2.0 if noise else 1.0)
        every += [*gains, slopes]
    assert [claim.p for claim in found.values()] == pytest.approx(holm([p_value(list(gaps)) for gaps in every]))


def test_the_surface_is_compared_by_ratios(study, lines):
    runs = study.claims.by_place(lines)
    found = study.claims.surface_claims(runs)
    assert len(found) == 2 * 2 * (6 + 1)
    for noise in (0.0, 0.2):
        halved = [math.log(0.5 * (1 + seed % 3 / 10)) for seed in range(10)]
        assert found["ra", noise, 0.9].gaps == pytest.approx(halved)
        grown = found["largest", noise, "98 % ÷ dense"]
        wobble = [((7 * s + 12) % 5 / 10, (7 * s + 15) % 5 / 10) for s in range(10)]  # of "rigl" and "dense"
        assert grown.gaps == pytest.approx([math.log(50 * (1 + sparse) / (1 + dense)) for sparse, dense in wobble])
    interval = mean_interval(halved)
    text = study.page.ratio(halved)
    assert text == f"**{math.exp(interval.mean):.2f} [{math.exp(interval.low):.2f}–{math.exp(interval.high):.2f}]**"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({}, "holds"),
        ({"flatter": 2.0}, "stays open"),
        ({"sharper": -1.0}, "stays open"),
        ({"sharper": -1.0, "flatter": 2.0}, "is refuted"),
    ],
)
def test_the_second_claim_is_judged_as_the_plan_says(study, shape, expected):
    found = study.claims.surface_claims(study.claims.by_place(made_up(study.runs, **shape)))
    assert {study.claims.verdict(found, quantity, noise) for quantity in ("largest", "ra") for noise in (0.0, 0.2)} == {
        expected
    }


def test_rounds_are_compared_by_method_and_share(study, lines):
    found = study.claims.rounds_claims(study.claims.by_place(lines))
    assert len(found) == 12
    gaps = accuracies(lines, "lrr", 0.9, 0.2, 0.2, 0.3) - accuracies(lines, "lrr", 0.9, 0.2, None, 0.3)
    assert found[0.2, "lrr", 0.3].gaps == pytest.approx(gaps)


def test_examples_hold(study):
    for module in (study.claims, study.page):
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed


def test_the_page_has_the_means_and_the_chosen_rho(study, lines):
    text = study.page.rendered(lines)
    plain = accuracies(lines, "rigl", 0.95, 0.0, None).mean()
    row = next(row for row in text.splitlines() if row.startswith("| 95 % |"))
    assert row.startswith(f"| 95 % | {plain:.1f} | **+")
    assert row.count("(0.2)") == 2
    assert "| LT, 20 % × 11 |" in text
    assert "| LRR, 40 % × 5 |" in text
    told = text.replace("\n ", "")
    assert "the claim holds with right labels and holds with wrong ones" in told
    assert "holds in 4 of 4 cases" in told
    gains = accuracies(lines, "rigl", 0.98, 0.2, 0.2) - accuracies(lines, "rigl", 0.98, 0.2, None)
    assert f"the largest is **+{gains.mean():.1f} [" in told
    assert "]**\\* at 98 %" in told


def test_the_picture_shows_the_means(study, lines):
    runs = study.claims.by_place(lines)
    gain, largest, ra = study.picture.drawn(runs).axes
    right = gain.containers[0].lines[0]
    expected = [np.mean(pairs.gains) for pairs in study.claims.swept(runs, 0.0).values()]
    assert right.get_ydata() == pytest.approx(expected)
    assert right.get_xdata() == pytest.approx(np.log10([1 / (1 - s) for s in study.runs.SPARSITIES]))
    assert len(largest.containers) == len(ra.containers) == 4
    measured = [one.plain for one in study.claims.swept(runs, 0.0).values()]
    means = [statistics.geometric_mean(own["active"]["ra"] for own in arm) for arm in measured]
    assert ra.containers[0].lines[0].get_ydata() == pytest.approx(means)


def test_the_surface_of_a_run_is_as_its_plain_form(study, tmp_path, monkeypatch):
    sweep = study.runs
    monkeypatch.setattr(sweep, "POINTS", 3)
    monkeypatch.setattr(sweep, "PAIRS", 2)
    place = sweep.Place("rigl", 0.9, None, 0.2)
    train(RunConfig.of(**{**place.settings, "epochs": 2, "validate_every": 2}, seed=3), tmp_path / "run")
    run = load_run(tmp_path / "run")
    found = sweep.surface(run)
    batch = next(iter(run.task.splits.train.first(100).batches(100)))
    images, labels = batch.content
    weights = dict(run.model.named_parameters())
    for space, masks in (("active", run.masks), ("all", None)):
        roughness = []
        for pair in range(2):
            one, other = (direction(run.model, 0, "landscape", pair, n, masks=masks) for n in (0, 1))
            heights = []
            for a in (-0.5, 0.0, 0.5):
                for b in (-0.5, 0.0, 0.5):
                    moved = {name: w + a * one.get(name, 0) + b * other.get(name, 0) for name, w in weights.items()}
                    with torch.no_grad():
                        output = torch.func.functional_call(run.model, moved, (images,))
                    heights.append(min(10.0, float(cross_entropy(output, labels))))
            roughness.append(np.abs(np.array(heights) - np.mean(heights)).mean())
        assert found[space]["ra"] == pytest.approx(np.mean(roughness), rel=1e-4)
    assert found["all"]["smallest"] <= found["active"]["smallest"] < 0  # the active rows are a part of all
    assert found["all"]["largest"] >= found["active"]["largest"] > 0


def test_the_page_is_made_of_the_data(study):
    found = study.runs.measured()
    if len(found) < study.runs.planned():
        assert not study.page.PAGE.exists()
        pytest.skip(f"{len(found)} of the plan's runs are measured so far")
    assert study.page.PAGE.read_text(encoding="utf-8") == study.page.rendered(found)
