"""The study of corrupted images: its differences beside their plain forms, and its page beside its data."""

import statistics

import pytest

from flatsparse.experiments.stats import holm, mean_interval, p_value
from tests.benchmark_scripts import importable

KINDS = ("fog", "snow")


@pytest.fixture(scope="module")
def study():
    """The script of the runs and that of the page."""
    with importable():
        import corrupted
        import corrupted_page

        yield corrupted, corrupted_page


@pytest.fixture(scope="module")
def lines(study):
    """Made-up accuracies of all runs: S²-SAM gains on fog, and on clean images half as much."""
    corrupted, _ = study

    def accuracy(cell, kind):
        gain = {"fog": 4.0, "clean": 1.0}.get(kind, 0.0) if cell.arm == "s2sam" else 0.0
        return 60 + gain + (5 * cell.seed + 3 * len(cell.arm) + len(kind)) % 7 / 5

    return [
        {
            **vars(cell),
            "clean": accuracy(cell, "clean"),
            "corrupted": {kind: accuracy(cell, kind) for kind in KINDS},
        }
        for cell in corrupted.cells()
    ]


def test_every_arm_runs_at_the_radius_that_validation_chose(study):
    corrupted, _ = study
    cells = list(corrupted.cells())
    assert len(set(cells)) == len(cells) == 6 * 5 * 10
    for arm in corrupted.survives.ARMS:
        radii = {(cell.sparsity, cell.noise): set() for cell in cells}
        for cell in cells:
            if cell.arm == arm:
                radii[cell.sparsity, cell.noise].add(cell.rho)
        assert all(len(own) == 1 for own in radii.values())
        assert (radii[0.95, 0.2] == {None}) == (arm == "plain")


def test_differences_are_paired_by_seed_and_corrected_over_the_settings(study, lines):
    _, page = study
    nets = page.by_setting(lines)
    mean = {
        (line["sparsity"], line["noise"], line["arm"], line["seed"]): statistics.fmean(line["corrupted"].values())
        for line in lines
    }
    gaps = {
        (s, noise): [mean[s, noise, "s2sam", seed] - mean[s, noise, "plain", seed] for seed in range(10)]
        for s, noise in nets
    }
    assert {setting: own.gaps("s2sam") for setting, own in nets.items()} == gaps
    adjusted = dict(zip(gaps, holm([p_value(own) for own in gaps.values()]), strict=True))
    text = page.rendered(lines)
    for setting, own in gaps.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {page._name(setting)}, "))
        shown = f"{mean_interval(own):+.1f}".replace("-", "−")
        assert shown in text
        assert (f"{shown}**\\*" in text) == (adjusted[setting] < 0.05)
        assert row.count("|") == 10


def test_what_is_beyond_clean_leaves_out_the_gain_on_clean_images(study, lines):
    _, page = study
    own = page.by_setting(lines)[0.9, 0.0]
    plain, ours = own.clean("plain"), own.clean("s2sam")
    expected = [gap - (b - a) for gap, a, b in zip(own.gaps("s2sam"), plain, ours, strict=True)]
    assert own.beyond_clean("s2sam") == pytest.approx(expected)


def test_the_page_is_made_of_the_data(study):
    corrupted, page = study
    found = corrupted.measured()
    if len(found) < len(list(corrupted.cells())):
        assert not page.PAGE.exists()
        pytest.skip(f"{len(found)} of the plan's runs are measured so far")
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(found)
