"""The page of all evidence: its sentences say what the rows bear, and it is made of the data."""

import dataclasses
import re
from types import SimpleNamespace

import pytest

from tests.benchmark_scripts import FOLDER, importable


@pytest.fixture(scope="module")
def study():
    """The scripts of the page, by name."""
    with importable():
        import arms
        import cifar_tables
        import evidence_rows
        import evidence_sentences
        import evidence_summary
        import judged
        import referee_page

        yield SimpleNamespace(
            arms=arms,
            cifar=cifar_tables,
            rows=evidence_rows,
            sentences=evidence_sentences,
            page=evidence_summary,
            judged=judged,
            referee=referee_page,
        )


@pytest.fixture
def made(study):
    """Makes a row from a mean difference to plain, that of the best rival, and whether they are sure."""

    def row(gain, rival=0.0, sure=False):
        def spread(mean):
            return tuple(mean + shift for shift in ((-0.1, 0.1, 0.05, -0.05) if sure else (-2.0, 2.0, 1.0, -1.0)))

        claim = study.judged.Claim(spread(gain), 0.01 if sure else 1.0, None)
        differences = [study.rows.Difference(spread(mean), sure) for mean in (rival, gain - rival)]
        rival_of = study.rows.Rival("a rival", *differences)
        return study.rows.Row("a setting", (90.0,) * 4, claim, 7, rival_of, by_change=spread(gain - 2.0))

    return row


@pytest.fixture
def known(study, made):
    """Rows of which nothing is sure."""
    names = ("digits", "int4", "finetune10", "CIFAR-10, 500 images")
    return {(name, noise): made(0.1) for name in names for noise in (0.0, 0.2)}


def of_cifar(made):
    """Rows of 10,000 images of CIFAR-10 of which nothing is sure."""
    names = ("CIFAR-10", "CIFAR-10, rounded", "CIFAR-10, fine-tuned", "CIFAR-10, corrupted")
    return {(name, noise): made(0.1) for name in names for noise in (0.0, 0.2)}


def test_there_are_five_sentences(study, known, made):
    more = {("slope", noise): dataclasses.replace(made(1.0), rival=None, plain=None) for noise in (0.0, 0.2)}
    more |= {(name, 0.0): made(0.1) for name in study.sentences.REGIME} | of_cifar(made)
    for rows in (known, known | more):
        found = study.sentences.sentences(rows)
        assert len(found) == 5
        assert all(one.endswith(".") and ". " not in one for one in found)


@pytest.mark.parametrize(
    ("sentence", "key", "row", "said"),
    [
        ("right", ("digits", 0.0), (0.1, 0.0, False), "expect no gain of S²-SAM:** in none of 2 settings"),
        ("right", ("digits", 0.0), (0.1, 0.0, False), "is its difference sure (+0.1"),
        (
            "right",
            ("digits", 0.0),
            (-3.5, 0.0, False),
            "on a setting); in 1 its interval lies below 0; it is",
        ),
        ("right", ("digits", 0.0), (1.0, 0.0, True), "gains in some settings:** surely in 1 of 2"),
        ("right", ("digits", 0.0), (-1.0, 0.0, True), "can cost accuracy:** it surely does in 1 of 2"),
        ("right", ("regime, RigL 90 %", 0.0), (1.0, 0.0, True), "surely in 1 of 3"),
        (
            "right",
            ("digits", 0.0),
            (0.1, 4.0, True),
            "it is surely below the best of what costs as much in 1 (minus a rival **−3.9",
        ),
        ("right", ("digits", 0.0), (4.0, 0.1, True), "; it is surely below the best of what costs as much in none."),
        ("wrong", ("digits", 0.2), (4.0, 8.0, True), "a rival can do more than S²-SAM and costs no more"),
        ("wrong", ("digits", 0.2), (4.0, 2.0, True), "S²-SAM can do more than a rival"),
        ("wrong", ("digits", 0.2), (4.0, 8.0, False), "not surely better or worse than a rival"),
        (
            "wrong",
            ("CIFAR-10, 500 images", 0.2),
            (4.0, 8.0, True),
            "early stopping are not measured, S²-SAM has **+4.0",
        ),
        ("wrong", ("CIFAR-10", 0.2), (3.0, 8.0, True), "which are not fitted, S²-SAM has **+3.0"),
        ("rounded", ("int4", 0.0), (1.0, 0.0, False), "no proven reason"),
        ("rounded", ("int4", 0.0), (1.0, 0.0, True), "surely better with right labels:**"),
        ("rounded", ("int4", 0.0), (-1.0, 0.0, True), "surely worse with right labels:**"),
        (
            "rounded",
            ("CIFAR-10, rounded", 0.0),
            (1.0, 0.0, True),
            "surely better with right labels in some settings:**",
        ),
        ("rounded", ("CIFAR-10, rounded", 0.2), (3.0, 0.0, True), "on digits and **+3.0"),
        (
            "rounded",
            ("CIFAR-10, rounded", 0.2),
            (3.0, 0.0, True),
            "of which rounding makes −1.9 [−4.8, +1.0] and **+1.0",
        ),
        ("forgotten", ("finetune10", 0.2), (1.0, 0.0, True), "are surely better in some settings"),
        ("forgotten", ("finetune10", 0.2), (-1.0, 0.0, True), "are surely worse in some settings"),
        ("forgotten", ("finetune10", 0.2), (1.0, 0.0, False), "are not surely better or worse"),
        ("forgotten", ("CIFAR-10, fine-tuned", 0.2), (-3.0, 0.0, True), "are surely worse in some settings"),
        ("forgotten", ("CIFAR-10, fine-tuned", 0.0), (3.0, 0.0, True), "with right labels S²-SAM minus plain is +0.1"),
        ("claimed", ("slope", 0.0), (1.0, 0.0, True), "sparsity holds with right labels (**+1.0"),
        ("claimed", ("slope", 0.0), (-1.0, 0.0, True), "sparsity is refuted with right labels"),
        ("claimed", ("slope", 0.0), (1.0, 0.0, False), "sparsity stays open with right labels"),
        (
            "claimed",
            ("digits", 0.0),
            (1.0, 0.0, True),
            "is not yet measured, and its gain on all of CIFAR-10 is not yet",
        ),
        (
            "claimed",
            ("regime, MEST(EM) 98 %", 0.0),
            (1.0, 0.5, True),
            "that we know (MEST(EM) 98 %, ResNet-32, 160 epochs), ResNet-20 in 15 epochs surely gains (**+1.0",
        ),
        (
            "claimed",
            ("regime, MEST(EM) 98 %", 0.0),
            (0.1, 0.5, False),
            "ResNet-20 in 15 epochs leaves it open (+0.1",
        ),
    ],
)
def test_a_sentence_says_what_the_rows_bear(study, known, made, sentence, key, row, said):
    more = {("slope", 0.2): made(0.0)} if key[0] == "slope" else {}
    if key in of_cifar(made):
        more = of_cifar(made)
    rows = known | more | {key: made(*row)}
    assert said in getattr(study.sentences, sentence)(rows)


def test_the_loss_surface_is_told_where_it_is_measured(study, known):
    assert "sharper in sparse nets and flatter with S²-SAM holds in 3 of 4 cases" in study.sentences.claimed(
        known, "3 of 4"
    )
    assert "surface" not in study.sentences.claimed(known)


def test_the_papers_largest_gain_is_ruled_out_where_half_a_point_is(study, known, made):
    row = made(-0.2)
    excluded = dataclasses.replace(row, gain=dataclasses.replace(row.gain, excluded="difference"))
    said = study.sentences.claimed(known | {(study.sentences.REGIME[0], 0.0): excluded})
    assert "ResNet-20 in 15 epochs shows no gain of half a point (−0.2" in said


@pytest.fixture
def collected(study, known):
    """Rows by study: the methods', the referee's and those of what survives."""
    titles = [study.page.STUDIES[place].title for place in (0, 1, 4)]
    parts = (("digits",), ("int4", "finetune10"), ("CIFAR-10, 500 images",))
    found = {one.title: {} for one in study.page.STUDIES}
    for title, names in zip(titles, parts, strict=True):
        found[title] = {key: row for key, row in known.items() if key[0] in names}
    return found


def test_the_page_names_the_studies_that_are_not_complete(study, collected):
    page = study.page.rendered(collected)
    assert page.count("| a setting |") + page.count("| [a setting](") == 8
    left = re.search(r"## Not yet measured\n\n(.*?)\n\n", page, re.DOTALL)[1]
    assert re.findall(r"`benchmarks/(\w+)\.md`", left) == ["corrupted", "sweep", "cifar", "regime"]
    details = page[page.index("## Details") :]
    assert details.count("\n- ") == 3 + 2  # free directions, theory
    assert "Over sparsity" not in details


def test_the_picture_has_both_dots_of_every_row(study, known, made):
    slope = {("slope", 0.0): dataclasses.replace(made(1.0, sure=True), plain=None, rival=None)}
    figure = study.page.picture(known | slope)
    dots = [(*one.lines[0].get_xydata()[0], one.lines[0].get_markerfacecolor()) for one in figure.axes[0].containers]
    assert len(dots) == 2 * len(known) + 1
    assert dots[0] == (pytest.approx(0.1), -0.15, "white")
    assert dots[1] == (0.0, 0.15, "white")
    assert dots[-1][0] == pytest.approx(1.0)
    assert dots[-1][2] != "white"


def test_the_page_is_made_of_the_data(study):
    page = study.page
    found = page.collected()
    for own in page.STUDIES[:2]:
        if not found[own.title]:
            pytest.skip(f"{len(own.read())} runs of benchmarks/{own.plan} are measured so far")
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(found, study.rows.surface(page.sweep.measured()))


def test_flatter_nets_gain_nothing_with_right_labels_as_the_page_says(study):
    assert "flatter nets gain nothing with right labels" in study.page.PAGE.read_text(encoding="utf-8")
    sweep = study.rows.sweep_claims
    gains = sweep.gain_claims(sweep.by_place(study.page.sweep.measured()))
    assert not any(claim.above for (noise, _), claim in gains.items() if noise == 0.0)


def test_the_page_says_where_a_difference_is_judged_in_two_families(study):
    shown = study.cifar.Shown.of(study.page.cifar.measured())
    assert study.cifar.claims_of_sweep(shown)[0.95].below
    assert not study.page.collected()["CIFAR-10 with augmentation"]["CIFAR-10", 0.0].gain.sure
    assert "is sure in the small one [over sparsity]" in study.page.PAGE.read_text(encoding="utf-8")


def test_the_readme_says_what_the_rows_say(study):
    rows = {key: row for own in study.page.collected().values() for key, row in own.items()}
    said = " ".join((FOLDER.parent / "README.md").read_text(encoding="utf-8").replace("*", "").split())
    right, few, wrong = rows["digits", 0.0], rows["CIFAR-10, 500 images", 0.0], rows["digits", 0.2]
    assert not right.gain.sure
    assert not few.gain.sure
    assert wrong.rival.name == "label smoothing"
    many = rows["CIFAR-10", 0.0]
    gaps = (right.gain.gaps, few.gain.gaps, wrong.gain.gaps, wrong.rival.gain.gaps, many.gain.gaps)
    texts = [study.judged.difference(own).replace("*", "") for own in gaps]
    assert f"{texts[0]} points on digits; on CIFAR-10 {texts[1]} with 500 images, {texts[4]} with 10,000 that" in said
    largest, sparse, last = (rows[name, 0.0] for name in study.sentences.REGIME)
    assert {row.gain.no_gain for row in (largest, sparse, last)} == {True}  # as limitations and changelog say
    assert all(row.rival.ours.mean < 0 for row in (sparse, last))
    texts += [
        study.judged.difference(gaps).replace("*", "") for gaps in (largest.gain.gaps, sparse.gain.gaps, sparse.nearly)
    ]
    assert (
        f"with 45,000 and [15 epochs](docs/paper-regime.md) {texts[5]} for MEST(EM) at 98 %, {texts[6]} for RigL"
        in said
    )
    assert f"{texts[6]} for RigL at 95 %, {texts[7]} at a smaller ρ." in said
    assert f"it adds {texts[3]} and costs nothing; S²-SAM adds {texts[2]}" in said
    runs = study.referee.by_labels(study.page.referee.measured())[0.2]
    smoothing = {one["label_smoothing"]: index for index, one in runs.candidates("label smoothing").items()}
    usual = study.judged.paired(runs.values("label smoothing", candidate=smoothing[0.1]), runs.values("plain"))
    strength = runs.settings("label smoothing")["label_smoothing"]
    assert f"strength was {strength}; at 0.1 it adds {study.judged.difference(usual).replace('*', '')}" in said
    assert "On the 10,000 nothing surely helped" in said
    shown = study.cifar.Shown.of(study.page.cifar.measured())
    found = study.arms.claims(shown.referee, (study.cifar.REFEREE,))
    assert not any(claim.above for own in found.values() for (_, base), claim in own.items() if base == "plain")
    assert "both together no more than smoothing" in said
    assert study.judged.mean_interval(runs.gaps("S²-SAM, label smoothing", "label smoothing")).high < 0.5
