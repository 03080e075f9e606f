"""The rows of the page of all evidence, beside their plain forms on made-up runs."""

import doctest
import math
import random
import statistics
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from flatsparse.experiments.stats import holm, p_value
from tests.benchmark_scripts import importable


@pytest.fixture(scope="module")
def study():
    """What makes the rows, and the scripts of the runs, by name."""
    with importable():
        import cifar
        import corrupted
        import evidence_methods_page
        import evidence_rows
        import planned
        import referee
        import regime
        import survives
        import sweep

        yield SimpleNamespace(
            rows=evidence_rows,
            methods=evidence_methods_page,
            planned=planned,
            cifar=cifar,
            corrupted=corrupted,
            referee=referee,
            regime=regime,
            survives=survives,
            sweep=sweep,
        )


def wobble(arm, seed):
    """What differs from seed to seed, for each arm in another way."""
    return random.Random(f"{arm} {seed}").random() / 2


GAINS = {"S²-SAM": 4.0, "label smoothing": 8.0, "S²-SAM, label smoothing": 9.0, "SAFE, S²-SAM": 20.0}


def of_arms(cells, arms, gains, share):
    """Lines of arms with candidates, of which the second is the best by validation, gaining where labels are wrong.

    Args:
        share: the share of wrong labels of a cell.
    """
    for cell in cells:
        best = min(1, len(arms[cell.arm]) - 1)
        off = abs(cell.candidate - best)
        yield {
            **asdict(cell),
            "settings": arms[cell.arm][cell.candidate],
            "validation": 90.0 - off,
            "test": 80.0 - off + wobble(cell.arm, cell.seed) + (gains.get(cell.arm, 0.0) if share(cell) else 0.0),
        }


def of_referee(study):
    return list(of_arms(study.referee.cells(), study.referee.ARMS, GAINS, lambda cell: cell.noise))


def test_missing_runs_are_those_without_a_line(study):
    assert doctest.testmod(study.planned).failed == 0


def test_a_row_has_the_best_rival_without_s2sam_and_both_differences(study):
    referee = study.referee
    lines = of_referee(study)
    row = study.rows.of_referee(lines)["digits", 0.2]

    def tests(arm):
        return [80.0 + GAINS.get(arm, 0.0) + wobble(arm, seed) for seed in referee.SEEDS]

    assert row.plain == tuple(tests("plain"))
    assert row.gain.gaps == tuple(a - b for a, b in zip(tests("S²-SAM"), tests("plain"), strict=True))
    assert row.rival.name == "label smoothing"
    smoothed = tests("label smoothing")
    assert row.rival.gain.gaps == tuple(a - b for a, b in zip(smoothed, tests("plain"), strict=True))
    assert row.rival.ours.gaps == tuple(a - b for a, b in zip(tests("S²-SAM"), smoothed, strict=True))
    assert (row.gain.above, row.rival.gain.sure, row.rival.ours.sure) == (True, True, True)
    assert row.verdict == "sure gain; surely below label smoothing"
    assert row.family == 2 * (16 + 15 + 3)
    right = study.rows.of_referee(lines)["digits", 0.0]
    assert right.verdict == "no gain of half a point"  # wobbles alone
    assert study.rows.of_referee(lines[:-1]) == {}


def test_after_a_change_rho_is_that_of_the_change_and_only_s2sam_is_claimed(study):
    survives = study.survives
    names = ("as trained", *survives.CHANGES, f"{survives.CHANGES[-1]} back")

    def score(cell, name, split):
        best = 0.5 if name == "int4" else 0.2
        gain = {"plain": 0.0, "s2sam": 2.0, "sam": 3.0, "late": 1.0, "random": -1.0}[cell.arm]
        return 80 + gain + (1.0 if cell.rho == best else 0.0) + (wobble(cell.arm, cell.seed) if split == "test" else 0)

    lines = [
        {
            **asdict(cell),
            **{split: {name: score(cell, name, split) for name in names} for split in ("test", "validation")},
        }
        for cell in survives.cells()
    ]
    found = study.rows.of_survives(lines)
    assert list(found) == [("int4", 0.0), ("int4", 0.2), ("finetune10", 0.0), ("finetune10", 0.2)]
    row = found["int4", 0.2]
    cells = [survives.Cell(0.95, 0.2, arm, rho, 3) for arm, rho in (("plain", None), ("s2sam", 0.5), ("sam", 0.5))]
    plain, ours, sam = (score(cell, "int4", "test") for cell in cells)
    assert row.rival.name == "SAM in half the epochs"
    assert (row.plain[3], row.gain.gaps[3]) == (plain, ours - plain)
    assert (row.rival.gain.gaps[3], row.rival.ours.gaps[3]) == (sam - plain, ours - sam)
    assert row.gain.above
    assert not row.rival.gain.sure
    assert row.verdict == "sure gain"
    assert row.family == 3 * 2 * 8
    trained = [score(cell, "as trained", "test") for cell in cells[:2]]  # of the same nets
    assert row.by_change[3] == pytest.approx(ours - plain - (trained[1] - trained[0])) == 1.0
    assert study.rows.of_survives(lines[1:]) == {}


def test_corrupted_digits_are_means_over_corruptions_claimed_in_all_settings(study):
    gains = {"plain": 0.0, "s2sam": 1.0, "sam": 0.5, "late": 0.0, "random": 0.2}
    lines = [
        {**asdict(cell), "corrupted": {"fog": 40.0 + gains[cell.arm], "blur": 60.0 + wobble(cell.arm, cell.seed)}}
        for cell in study.corrupted.cells()
    ]
    found = study.rows.of_corrupted(lines)
    row = found["corrupted", 0.0]
    assert row.plain[2] == pytest.approx((40.0 + 60.0 + wobble("plain", 2)) / 2)
    assert row.rival.name == "SAM in half the epochs"
    each = p_value(row.gain.gaps)  # alike in all six settings
    assert row.gain.p == holm([each] * 6)[0]
    assert study.rows.of_corrupted(lines[:-1]) == study.rows.of_corrupted([]) == {}


def test_the_slope_over_sparsity_has_no_rival(study):
    sweep = study.sweep

    def line(cell):
        steep = (2 + cell.seed / 10) * -math.log10(1 - cell.place.sparsity)
        return {**cell.identity, "validation": 80.0, "test": 80.0 + (steep if cell.rho else 0.0)}

    lines = []
    for part in sweep.places():
        lines += map(line, sweep.choices(part))
        lines += map(line, sweep.compared(part, lines))
    row = study.rows.of_sweep(lines)["slope", 0.0]
    assert list(row.gain.gaps) == pytest.approx([2 + seed / 10 for seed in sweep.SEEDS])
    assert (row.plain, row.rival, row.verdict) == (None, None, "sure growth")
    assert row.family == 14
    assert study.rows.of_sweep(lines[:-1]) == {}
    assert study.rows.surface(lines[:-1]) == ""


def test_500_images_of_cifar_have_the_differences_of_the_page_of_methods(study):
    methods = study.methods
    found = study.rows.of_methods(methods.read())
    page = methods.PAGE.read_text(encoding="utf-8")
    for noise, name, best in ((0.0, "right labels", "random"), (0.2, "20% wrong labels", "random")):
        row = found["CIFAR-10, 500 images", noise]
        own = [one.split(" | ") for one in page.splitlines() if one.startswith(f"| RigL 90%, {name} |")]
        told = {one[1]: one for one in own if len(one) == 9}  # of the tables that compare
        assert row.gain.text.removesuffix("\\*") == told["S²-SAM"][6]
        assert row.gain.sure == row.gain.text.endswith("*") == (float(told["S²-SAM"][7].strip("<")) < 0.05)
        assert row.rival.name == f"{best} direction"
        assert row.rival.gain.text == told[best][6]
        assert f"{statistics.fmean(row.plain):.1f} ±" in told["plain"][4]


def of_cifar(study):
    """Lines of CIFAR-10; after each change S²-SAM has more, and SAM yet more, and the third ρ is the best after int4."""
    cifar = study.cifar
    gains = {**GAINS, "SAM, half the epochs": 1.0}
    names = ("as trained", *cifar.CHANGES, cifar.FINE_TUNED, f"{cifar.FINE_TUNED} back")

    def after(line, name):
        best = 2 if name == "int4" and line["arm"] != "plain" else min(1, len(cifar.ARMS[line["arm"]]) - 1)
        gain = {"S²-SAM": 2.0, "SAM, half the epochs": 3.0}.get(line["arm"], 0.0)
        return 60.0 + gain - abs(line["candidate"] - best)

    def whole(line):
        test, validation = (
            {name: after(line, name) + shift for name in names} for shift in (wobble(line["arm"], line["seed"]), 0.0)
        )
        corrupted = {"fog": test["as trained"] - 30.0, "blur": test["as trained"] - 10.0}
        return {**line, "after": {"test": test, "validation": validation}, "corrupted": corrupted}

    lines = [whole(one) for one in of_arms(cifar.for_choice(), cifar.ARMS, gains, lambda cell: cell.noise)]
    return lines + [whole(one) for one in of_arms(cifar.compared(lines), cifar.ARMS, gains, lambda cell: cell.noise)]


def test_10000_images_of_cifar_are_judged_as_their_plan_says(study):
    cifar = study.cifar
    lines = of_cifar(study)
    row = study.rows.of_cifar(lines)["CIFAR-10", 0.2]
    assert row.setting == "CIFAR-10, 10,000 images, RigL 95 %"
    ours = [4.0 + wobble("S²-SAM", seed) - wobble("plain", seed) for seed in cifar.SEEDS]
    assert list(row.gain.gaps) == pytest.approx(ours)
    assert row.rival.name == "label smoothing"
    pairs = 2 * (len(cifar.ARMS) - 1) - 1
    assert row.gain.p <= p_value(row.gain.gaps) * 2 * pairs
    assert row.gain.p > p_value(row.gain.gaps)
    assert study.rows.of_cifar(lines[:-1]) == study.rows.of_cifar([]) == {}


def test_nets_of_cifar_are_judged_after_changes_and_on_corrupted_images_too(study):
    found = study.rows.of_cifar(of_cifar(study))
    names = ("CIFAR-10", "CIFAR-10, rounded", "CIFAR-10, fine-tuned", "CIFAR-10, corrupted")
    assert list(found) == [(name, noise) for name in names for noise in (0.0, 0.2)]
    plain = [60.0 + wobble("plain", seed) for seed in study.cifar.SEEDS]
    ours = [62.0 + wobble("S²-SAM", seed) for seed in study.cifar.SEEDS]
    for name, lower, family in ((names[1], 0.0, 48), (names[2], 0.0, 48), (names[3], 20.0, 6)):
        row = found[name, 0.0]
        assert list(row.plain) == pytest.approx([value - lower for value in plain])
        assert list(row.gain.gaps) == pytest.approx([a - b for a, b in zip(ours, plain, strict=True)])
        assert row.gain.p == pytest.approx(p_value(row.gain.gaps) * family)  # all alike
        assert row.family == family
        assert (row.rival.name, row.rival.gain.sure) == ("SAM in half the epochs", False)
        assert row.rival.ours.mean == pytest.approx(
            -1.0 + statistics.fmean(wobble("S²-SAM", x) - wobble("SAM, half the epochs", x) for x in study.cifar.SEEDS)
        )


def test_the_papers_regime_chooses_at_one_sparsity_of_each_method(study):
    regime = study.regime
    gains = {"S²-SAM": 1.0, "label smoothing": 0.3}
    cells = [cell for method in regime.CHOSEN_AT for cell in regime.for_choice(method)]
    lines = list(of_arms(cells, regime.ARMS, gains, lambda cell: True))
    for place in regime.PLACES:
        lines += of_arms(regime.compared(lines, *place), regime.ARMS, gains, lambda cell: True)
    rows = study.rows.of_regime(lines)
    assert list(rows) == [(f"regime, {name}", 0.0) for name in ("MEST(EM) 98 %", "RigL 95 %", "RigL 90 %")]
    ours = [1.0 + wobble("S²-SAM", seed) - wobble("plain", seed) for seed in regime.SEEDS]
    for row in rows.values():
        assert row.family == 9
        assert list(row.gain.gaps) == pytest.approx(ours)
        assert row.rival.name == "label smoothing"
        assert row.nearly is None
        assert row.text == row.gain.text
    added = list(of_arms(regime.other_rho(lines, "rigl", 0.95), regime.ARMS, gains, lambda cell: True))
    row = study.rows.of_regime(lines + added)["regime, RigL 95 %", 0.0]
    assert row.gain == rows["regime, RigL 95 %", 0.0].gain
    assert list(row.nearly) == pytest.approx([gain - 1.0 for gain in ours])  # the first ρ is worse by a point
    assert list(row.rival.ours.nearly) == pytest.approx([gap - 1.0 for gap in row.rival.ours.gaps])
    assert row.text == f"{row.gain.text} ({study.rows.judged.difference(row.nearly)} at the ρ nearly chosen)"
    assert study.rows.of_regime(lines[:-1]) == study.rows.of_regime(lines[:4]) == study.rows.of_regime([]) == {}
