"""The study of CIFAR-10: its arms, choices, claims and page beside plain forms on made-up runs, and the page beside its data."""

import itertools
import math
import statistics
from collections import Counter

import pytest
import torch

from flatsparse.experiments.data.corruptions import MAIN
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.stats import holm, p_value
from tests.benchmark_scripts import FOLDER, importable


@pytest.fixture(scope="module")
def study():
    """The script of the runs, and that of the page."""
    with importable():
        import cifar
        import cifar_page

        yield cifar, cifar_page


def score(cell, name, gain):
    """A made-up accuracy; after int4 candidate 2 is the best one, otherwise candidate 1."""
    best = 2 if name == "int4" else 1
    wobble = (7 * cell.seed + 1) * (len(cell.arm) + len(name)) % 13 / 15
    return 70 + gain * (cell.arm == "S²-SAM") + wobble - 2 * abs(cell.candidate - best) * (cell.arm != "plain")


def made_up(cifar, cell, gain):
    """The line of a run."""
    line = {
        **cell.identity,
        "epoch": cifar.EPOCHS,
        "gradients": 1884,
        "train_accuracy": 60.0,
        "validation": score(cell, "validation", 0.0),
        "test": score(cell, "as trained", gain),
    }
    if cifar.changed(cell.sparsity, cell.noise, cell.arm):
        whole = cell.seed in cifar.SEEDS
        names = ["as trained", *cifar.CHANGES]
        tested = [*names, cifar.FINE_TUNED, f"{cifar.FINE_TUNED} back"] if whole else names
        line["after"] = {
            "test": {name: score(cell, name, gain) - 10 * (name == "int4") for name in tested},
            "validation": {name: score(cell, name, 0.0) for name in tested},
        }
        line["corrupted"] = {name: score(cell, name, gain) - 30 for name in MAIN} if whole else None
    return line


def key(line):
    return line["sparsity"], line["noise"], line["arm"], line["candidate"]


def plan(cifar, gain):
    """Made-up lines of all runs."""
    choice = [made_up(cifar, cell, gain) for cell in cifar.for_choice()]
    return choice + [made_up(cifar, cell, gain) for cell in cifar.compared(choice)]


@pytest.fixture(scope="module")
def lines(study):
    return plan(study[0], 3.0)


def test_no_candidate_takes_more_gradients_than_plain_training(study):
    cifar, _ = study
    steps = math.ceil(cifar.SHARED["train_size"] / cifar.SHARED["batch_size"])

    def gradients(settings):
        run = RunConfig.of(**{"epochs": cifar.EPOCHS, **{k: v for k, v in settings.items() if k != "stop"}})
        return run.schedule.epochs * steps * run.passes

    plain = gradients({})
    assert plain == 12 * 157
    for arm, candidates in cifar.ARMS.items():
        assert 1 <= len(candidates) <= 3
        assert all(0.9 * plain < gradients(one) <= plain for one in candidates), arm


def test_each_setting_has_its_arms_and_compared_seeds_have_no_part_in_choices(study, lines):
    cifar, _ = study
    assert set(cifar.SEEDS).isdisjoint(cifar.CHOICE)
    keys = [(*key(line), line["seed"]) for line in lines]
    assert len(set(keys)) == len(keys)
    arms = Counter((sparsity, noise) for sparsity, noise, _ in cifar.groups())
    assert arms == {
        **{(0.95, noise): 15 for noise in cifar.NOISES},
        **dict.fromkeys(itertools.product((0.9, 0.0), cifar.NOISES), 5),
        **{(s, 0.0): 2 for s in (0.98, 0.8, 0.5)},
    }
    tricked = [{**line, "validation": 99.0} if line["seed"] < 5 else line for line in lines]
    assert list(cifar.compared(tricked)) == list(cifar.compared(lines))


def test_the_candidate_of_the_best_mean_validation_accuracy_is_chosen_as_trained_and_after_each_change(study, lines):
    cifar, _ = study

    def plainly(group, change):
        own = [one for one in lines if (one["sparsity"], one["noise"], one["arm"]) == group and one["seed"] >= 100]
        means = [
            statistics.fmean(
                one["validation"] if change is None else one["after"]["validation"][change]
                for one in own
                if one["candidate"] == candidate
            )
            for candidate in range(len(cifar.ARMS[group[2]]))
        ]
        return means.index(max(means))

    of = cifar.by_group(lines)
    for group in cifar.groups():
        if len(cifar.ARMS[group[2]]) == 1:
            assert cifar.chosen(of[group]) == 0
            continue
        assert cifar.chosen(of[group]) == plainly(group, None) == 1
        if cifar.changed(*group):
            assert [cifar.chosen(of[group], c) for c in cifar.CHANGES] == [plainly(group, c) for c in cifar.CHANGES]
    assert cifar.chosen(of[0.9, 0.2, "S²-SAM"], "int4") == 2
    alike = [{**line, "validation": 70.0} for line in of[0.9, 0.2, "S²-SAM"]]
    assert cifar.chosen(alike) == 0


def test_compared_are_all_candidates_that_a_choice_needs_and_no_others(study, lines):
    cifar, _ = study
    of = cifar.by_group(lines)
    found = Counter((cell.sparsity, cell.noise, cell.arm, cell.candidate) for cell in cifar.compared(lines))
    for group in cifar.groups():
        changes = ("as trained", *cifar.CHANGES) if cifar.changed(*group) else ("as trained",)
        wanted = {cifar.chosen(of[group], change) for change in changes}
        seeds = 3 if group[0] in (0.98, 0.8, 0.5) else 5
        own = {key[3]: count for key, count in found.items() if key[:3] == group}
        assert own == dict.fromkeys(wanted, seeds)


def test_claims_are_paired_by_seed_and_corrected_within_their_family(study, lines):
    _, page = study
    shown = page.Shown.of(lines)

    def tested(*cell, entry):
        own = {line["seed"]: line for line in lines if line["seed"] < 5 and key(line) == cell}
        return [entry(own[seed]) for seed in sorted(own)]

    def gaps(sparsity, noise, candidate, entry):
        ours, plain = (tested(sparsity, noise, *arm, entry=entry) for arm in (("S²-SAM", candidate), ("plain", 0)))
        return [a - b for a, b in zip(ours, plain, strict=True)]

    surviving = page.survives_page.claims(shown.changed, page.ALL_CHANGES)
    assert len(surviving) == 3 * 2 * 8
    assert list(surviving[(0.9, 0.2), "int4"].gaps) == gaps(0.9, 0.2, 2, lambda line: line["after"]["test"]["int4"])
    fine_tuned = gaps(0.0, 0.0, 1, lambda line: line["after"]["test"]["finetune1"])
    assert list(surviving[(0.0, 0.0), "finetune1"].gaps) == fine_tuned
    corrupting = page.claims_on_corrupted(shown)
    assert len(corrupting) == 3 * 2
    on_corrupted = gaps(0.95, 0.2, 1, lambda line: statistics.fmean(line["corrupted"].values()))
    assert corrupting[0.95, 0.2].gaps == pytest.approx(on_corrupted)
    cheap = page.arms.claims(shown.referee, (page.REFEREE,))
    assert [len(own) for own in cheap.values()] == [14 + 13] * 2
    assert list(cheap[0.2]["S²-SAM", "plain"].gaps) == gaps(0.95, 0.2, 1, lambda line: line["test"])
    sweeping = page.claims_of_sweep(shown)
    assert {sparsity: len(claim.gaps) for sparsity, claim in sweeping.items()} == {
        **dict.fromkeys((0.0, 0.9, 0.95), 5),
        **dict.fromkeys((0.5, 0.8, 0.98), 3),
    }
    assert list(sweeping[0.98].gaps) == gaps(0.98, 0.0, 1, lambda line: line["test"])
    every_cheap = {(noise, pair): claim for noise, own in cheap.items() for pair, claim in own.items()}
    for family in (surviving, corrupting, every_cheap, sweeping):
        assert [one.p for one in family.values()] == holm([p_value(one.gaps) for one in family.values()])


def test_the_page_chooses_what_the_runs_chose(study, lines):
    cifar, page = study
    shown, of = page.Shown.of(lines), cifar.by_group(lines)
    names = {"S²-SAM": "s2sam", "SAM, half the epochs": "sam", "late SAM": "late", "random": "random"}
    for setting, own in shown.changed.items():
        for (arm, name), change in itertools.product(names.items(), ("as trained", *cifar.CHANGES)):
            candidate = cifar.chosen(of[(*setting, arm)], change)
            assert own.chosen(name, change) == cifar.ARMS[arm][candidate]["rho"]
        assert own.chosen("s2sam", "finetune1") == own.chosen("s2sam", "as trained")
    for noise, own in shown.referee.items():
        assert all(own.chosen(arm) == cifar.chosen(of[0.95, noise, arm]) for arm in cifar.ARMS)


def test_sentences_and_tables_follow_the_runs(study, lines):
    cifar, page = study
    text = page.rendered(lines)
    assert f"{len(lines):,} runs" in text
    assert "Incomplete" not in text
    assert page.NOTHING not in text
    for heading in ("Dense, right labels", "RigL at 95 %, 20 % of the labels wrong", "Wrong labels"):
        assert f"\n### {heading}\n" in text
    assert "6 of S²-SAM's 6 differences to plain training are sure; sure gains: dense, right labels (**+" in text
    row = next(line for line in text.splitlines() if line.startswith("| 98 % | 3 | "))
    assert row.split(" | ")[4:6] == ["0.1", page.claims_of_sweep(page.Shown.of(lines))[0.98].text]
    kinds = [line.split(" | ")[0] for line in text.splitlines()]
    assert all(f"| {kind.replace('_', ' ')}" in kinds for kind in MAIN)
    assert (
        "It holds in 0 of 3 settings (dense: " in text
    )  # plain nets and these lose ten points alike at 4 bits, but for the choice
    claims = page.survives_page.claims(page.Shown.of(lines).changed, page.ALL_CHANGES)
    sure = {
        noise: [change for (s, change), claim in claims.items() if s[1] == noise and claim.above]
        for noise in (0.0, 0.2)
    }
    assert (
        f"With right labels, {len(sure[0.0])} of S²-SAM's 24 differences to plain training are sure; sure gains: "
        in text
    )
    assert "prune30 (dense, 90 %, 95 %)" in text
    assert f"against**: no claim is sure with right labels. It does not hold: {len(sure[0.0])} are." in text
    assert min(map(len, sure.values())) > 10
    for gain, more in ((0.0, "It holds: 0 are."), (-3.0, "It does not hold: ")):
        shown = page.Shown.of(plan(cifar, gain))
        claims = page.survives_page.claims(shown.changed, page.ALL_CHANGES)
        assert more in page.survives_page.counts(shown.changed, claims)[1]
    below = page.corruption(shown, page.claims_on_corrupted(shown))
    assert "are sure; sure losses: dense, right labels (**−" in below


def test_what_is_incomplete_is_told_and_left_out(study, lines):
    _, page = study
    assert page.Standing.of(lines).text == ""
    short = [line for line in lines if (line["sparsity"], line["seed"]) != (0.98, 2)]
    said = f"{len(short):,} of {len(lines):,} runs of the plan are measured"
    assert page.Standing.of(short).text == said
    text = page.rendered(short)
    assert text.startswith(f"**Incomplete: {said}; ")
    assert "| 95 % | 5 | " in text
    assert "| 98 % | 3 | " not in text
    started = [line for line in lines if line["seed"] == 100]
    fewest = 270 + 5 * (2 * 15 + 4 * 5) + 3 * 6
    assert page.Standing.of(started).text == f"135 of at least {fewest} runs of the plan are measured"
    assert not any(vars(page.Shown.of(started)).values())
    assert page.rendered([]).count(page.NOTHING) == 7


def test_hardly_different_candidates_and_the_slope_are_told(study, lines):
    _, page = study
    shown = page.Shown.of(lines)
    row = next(line for line in page.rendered(lines).splitlines() if line.startswith("| 98 % | 3 | "))
    validation = [
        statistics.fmean(x["validation"] for x in lines if key(x) == (0.98, 0.0, "S²-SAM", index) and x["seed"] >= 100)
        for index in range(3)
    ]
    assert row.endswith(f"| {', '.join(f'{value:.2f}' for value in validation)} |")
    gains = {s: own.gaps("S²-SAM", "plain") for s, own in shown.sweep.items()}
    tenfolds = [-math.log10(1 - s) for s in gains]
    slopes = [statistics.linear_regression(tenfolds, [own[i] for own in gains.values()]).slope for i in range(3)]
    said = page.over_sparsity(shown, page.claims_of_sweep(shown))
    assert f"changes by {page.judged.difference(slopes)} points, n = 3." in said
    assert page.smallest(shown) == "0 of 9"


def test_the_net_has_the_parameters_that_the_plan_names(study):
    from small_resnet import resnet8

    net = resnet8()
    assert sum(p.numel() for p in net.parameters()) == 78_042
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    plan = (FOLDER / "cifar.md").read_text(encoding="utf-8")
    assert "78,042 parameters" in plan


def test_the_page_is_made_of_the_data(study):
    cifar, page = study
    found = cifar.measured()
    if said := page.Standing.of(found).text:
        assert not page.PAGE.exists()
        pytest.skip(said)
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(found)
    plain = max(line["gradients"] for line in found if line["arm"] == "plain")
    assert all(line["gradients"] <= plain for line in found)
