"""The page of twelve methods and ρ, docs/evidence-methods.md, with every number from results/."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import judged

from flatsparse.common.json_files import read_json_lines
from flatsparse.experiments.labels import LABELS
from flatsparse.experiments.labels import label as label_of
from flatsparse.experiments.recipes.evidence import DECAYS, RHO, labels
from flatsparse.experiments.stats import holm, mean_interval, p_value

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "evidence-methods.md"
TEMPLATE = Path(__file__).with_name("evidence_methods_page.md")
DATA = {name: ROOT / "results" / f"evidence{name}.jsonl" for name in ("", "-digits")}
NOT_YET = "Not yet measured."
# Where each ρ was run. The ends, which are reported with test and training accuracy, had no part in the choice.
SWEEPS = {"cifar10": ("rho",), "digits": ("digits-rho", "digits-ends")}

Cells = dict[tuple[str, str, str], dict[str, dict[int, dict[str, Any]]]]


def read() -> list[dict[str, Any]]:
    return [record for file in DATA.values() if file.is_file() for record in read_json_lines(file)]


def by_cell(records: list[dict[str, Any]]) -> Cells:
    """Records by recipe, row and column, then by what differs there, then by seed."""
    found: Cells = {}
    for record in records:
        for recipe, row, column, label in record["cells"]:
            found.setdefault((recipe, row, column), {}).setdefault(label, {})[record["seed"]] = record
    return found


def gaps(
    place: dict[str, dict[int, dict[str, Any]]], label: str, base: str = "none", of: str = "test_accuracy"
) -> list[float]:
    """Differences between two of a place, of the seeds that both have."""
    ours, theirs = place.get(label, {}), place.get(base, {})
    return [
        ours[seed][of] - theirs[seed][of]
        for seed in sorted(ours)
        if seed in theirs and of in ours[seed] and of in theirs[seed]
    ]


def formatted(differences: list[float], places: int = 1) -> str:
    """Their mean with its interval, bold where that leaves out 0."""
    if len(differences) < 2:
        return f"{judged.signed(differences[0], places)} (one pair)" if differences else "–"
    d = mean_interval(differences)
    return judged.difference(differences, places) if d.bounded else f"{judged.signed(d.mean, places)} (all alike)"


def mean(runs: dict[int, dict[str, Any]], name: str, places: int = 1) -> str:
    return f"{statistics.fmean(r[name] for r in runs.values()):.{places}f}"


def spread(runs: dict[int, dict[str, Any]]) -> str:
    values = [r["test_accuracy"] for r in runs.values()]
    return mean(runs, "test_accuracy") + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def adjusted(places: Cells) -> dict[tuple[tuple[str, str, str], str], float]:
    """Holm's p values of all differences to plain of some places, by place and label."""
    claims = [(where, label) for where, place in places.items() for label in place if label != "none"]
    claims = [claim for claim in claims if len(gaps(places[claim[0]], claim[1])) > 1]
    return dict(zip(claims, holm([p_value(gaps(places[where], label)) for where, label in claims]), strict=True))


def compared(cells: Cells, recipe: str) -> str:
    """A recipe's table: everything next to the plain run of its place; p values are Holm's over the table."""
    places = {where: place for where, place in cells.items() if where[0] == recipe and "none" in place}
    p = adjusted(places)
    rows = []
    for where, place in places.items():
        for label in sorted(place, key=lambda name: name != "none"):
            runs = place[label]
            rho = next(iter(runs.values()))["rho"]
            rows.append(
                [
                    ", ".join(where[1:]),
                    LABELS.get(label, label.replace("s2sam", "S²-SAM")),
                    f"{rho:g}" if rho else "",
                    str(len(runs) if label == "none" else len(gaps(place, label))),
                    spread(runs),
                    mean(runs, "train_accuracy"),
                    "" if label == "none" else formatted(gaps(place, label)),
                    f"{p[where, label]:.2f}".replace("0.00", "<0.01") if (where, label) in p else "",
                    mean(runs, "ball", 2),
                ]
            )
    head = ["cell", "", "ρ", "n", "test %", "train %", "to plain, points", "p", "ball"]
    return table(head, rows) if rows else NOT_YET


def averaged(cells: Cells, recipe: str, column: str, label: str, base: str) -> list[float]:
    """Differences averaged over the rows of a column, seed by seed, of the seeds that all of them have."""
    places = [place for where, place in cells.items() if (where[0], where[2]) == (recipe, column)]
    there = [set(place.get(name, {})) for place in places for name in (label, base)]
    return [
        statistics.fmean(p[label][seed]["test_accuracy"] - p[base][seed]["test_accuracy"] for p in places)
        for seed in sorted(set.intersection(*there) if there else ())
    ]


def by_rho(cells: Cells, recipes: tuple[str, ...], column: str) -> dict[float, dict[str, dict[int, dict[str, Any]]]]:
    """Places of a sweep by their ρ, rising."""
    there = {
        float(where[1].removeprefix("ρ ")): place
        for where, place in cells.items()
        if where[0] in recipes and where[2] == column
    }
    return dict(sorted(there.items()))


def crossed(cells: Cells, recipe: str) -> str:
    """The comparison of the released scripts: S²-SAM with the larger decay against SGD with the smaller, and decay alone."""
    texts = []
    for column in dict.fromkeys(where[2] for where in cells if where[0] == recipe):
        small, large = (cells.get((recipe, f"decay {value:g}", column), {}) for value in DECAYS)
        both = {"none": small.get("none", {}), "s2sam": large.get("s2sam", {}), "decay": large.get("none", {})}
        texts.append(f"{column}: {formatted(gaps(both, 's2sam'))}, from decay alone {formatted(gaps(both, 'decay'))}")
    return "As the scripts compare, S²-SAM at 5e-4 against SGD at 1e-4, points: " + "; ".join(texts) + "."


def over_rho(cells: Cells, recipes: tuple[str, ...], column: str, value: str) -> str:
    """Means by sharpness and ρ, with their n."""
    there = by_rho(cells, recipes, column)
    names = list(dict.fromkeys(name for place in there.values() for name in place))
    rows = [
        [
            label_of(name),
            *(f"{mean(place[name], value)} ({len(place[name])})" if name in place else "–" for place in there.values()),
        ]
        for name in names
    ]
    return table(["", *(f"ρ = {rho:g}" for rho in there)], rows) if rows else NOT_YET


def chosen(cells: Cells, recipe: str, column: str, name: str) -> float | None:
    """The ρ with the highest mean validation accuracy, the smallest of equals; None before anything is measured."""
    means = {
        rho: statistics.fmean(r["validation_accuracy"] for r in place[name].values())
        for rho, place in by_rho(cells, (recipe,), column).items()
        if name in place
    }
    return min(means, key=lambda rho: (-means[rho], rho)) if means else None


def on_digits(cells: Cells, recipe: str) -> str:
    """Methods by labels: plain, and what each sharpness adds to it, with a star where Holm's p is below 0.05."""
    places = {where: place for where, place in cells.items() if where[0] == recipe and "none" in place}
    p = adjusted(places)
    rows = []
    for where, place in places.items():
        added = [
            formatted(gaps(place, name)) + (" *" if p.get((where, name), 1) < 0.05 else "")
            for name in ("s2sam", "sam", "random")
        ]
        plain = place["none"]
        rows.append([*where[1:], str(len(plain)), spread(plain), mean(plain, "train_accuracy"), *added])
    head = ["method", "labels", "n", "plain, test %", "train %", "S²-SAM", "SAM", "random"]
    return table(head, rows) if rows else NOT_YET


def sharp(cells: Cells, *recipes: str) -> str:
    """Measures of sharpness beside accuracy, of the runs that have them all: means and deviations, and differences to plain."""
    rows = []
    for (recipe, row, column), place in cells.items():
        if recipe not in recipes:
            continue
        measured = {label: {seed: r for seed, r in runs.items() if "ra" in r} for label, runs in place.items()}
        for label in sorted((label for label in measured if len(measured[label]) > 1), key=lambda name: name != "none"):
            there = list(measured[label].values())
            summed = []
            for name, places in (("test_accuracy", 1), ("train_loss", 3), ("ball", 2), ("largest", 1), ("ra", 3)):
                values = [r[name] for r in there]
                summed.append(f"{statistics.fmean(values):.{places}f} ± {statistics.stdev(values):.{places}f}")
                if name in ("largest", "ra"):
                    summed.append("" if label == "none" else formatted(gaps(measured, label, of=name), places))
            rho = there[0]["rho"]
            rows.append([f"{row}, {column}", label_of(label), f"{rho:g}" if rho else "", str(len(there)), *summed])
    head = ["cell", "", "ρ", "n", "test %", "training loss", "ball", "largest eigenvalue", "to plain", "Ra", "to plain"]
    return table(head, rows) if rows else NOT_YET


def learned(cells: Cells, *recipes: str) -> str:
    """The shares of right and of wrong training labels that were learned."""
    rows = []
    for (recipe, row, _), place in cells.items():
        for label in sorted(place if recipe in recipes else (), key=lambda name: name != "none"):
            there = {seed: r for seed, r in place[label].items() if "wrong_learned" in r}
            if there:
                shares = [mean(there, name) for name in ("right_learned", "wrong_learned", "wrong_corrected")]
                rho = next(iter(there.values()))["rho"]
                where = f"{'digits' if recipe == 'digits' else 'CIFAR-10'}, {row}"
                rows.append([where, label_of(label), f"{rho:g}" if rho else "", str(len(there)), *shares])
    head = [
        "cell",
        "",
        "ρ",
        "n",
        "right labels learned, %",
        "wrong labels learned, %",
        "true class in spite of a wrong label, %",
    ]
    return table(head, rows) if rows else NOT_YET


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def perturbed_share(records: list[dict[str, Any]], recipe: str) -> str:
    found = [r for r in records if r["cells"][0][0] == recipe]
    if not found:
        return "How much of that perturbation is on active weights: not yet measured."
    first, second = (statistics.fmean(r[name] for r in found) for name in ("first_half", "second_half"))
    return (
        f"With wrong labels {first:.0%} of that perturbation's squared norm is on active weights, biases and norms in the first"
        f" half of a run, {second:.0%} in the second (n = {len(found)}): its active part has a norm of about {first**0.5:.2f} and"
        f" {second**0.5:.2f} ρ, and the rest moves pruned weights."
    )


def rendered() -> str:
    """The page, with every number from ``results/``."""
    records = read()
    cells = by_cell(records)
    tables = ("main", "fixed", "short", "noise", "masking", "decay", "digits-main", "digits-masking", "digits-decay")
    words = {
        **{name.upper(): compared(cells, name) for name in tables},
        **{
            f"{value.upper()} {data.upper()} {noisy:g}": over_rho(
                cells, sweep[:1] if value == "validation" else sweep, labels(noisy), f"{value}_accuracy"
            )
            for data, sweep in SWEEPS.items()
            for noisy in RHO[data]
            for value in ("validation", "test", "train")
        },
        "DIGITS": on_digits(cells, "digits"),
        "DIGITS-ROUNDS": on_digits(cells, "digits-rounds"),
        "LEARNED": learned(cells, "noise", "digits"),
        "SHARP": sharp(cells, "main", "noise"),
        "DIGITS-SHARP": sharp(cells, "digits"),
        "CROSSED": crossed(cells, "decay"),
        "DIGITS-CROSSED": crossed(cells, "digits-decay"),
        "SHARE": perturbed_share(records, "share"),
        "DIGITS-SHARE": perturbed_share(records, "share-digits"),
        "RUNS": str(sum("steps" in r for r in records)),
        "HOURS": f"{sum(r.get('seconds', 0) for r in records) / 3600:.1f}",
        "TORCH": ", ".join(sorted({r["on"]["torch"] for r in records if "on" in r})),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, text in words.items():
        page = page.replace(f"«{name}»", text)
    # «recipe; column; ours» in a sentence is on how many rows ours gains, by intervals
    page = re.sub("«([^»;]*); ([^»;]*); ([^»;]*)»", lambda found: _gaining(cells, *found.groups()), page)
    # «recipe; row; column; ours; theirs» in a sentence is their difference; * averages over rows
    return re.sub(
        "«([^»;]*); ([^»;]*); ([^»;]*); ([^»;]*); ([^»;]*)»", lambda found: _difference(cells, *found.groups()), page
    )


def _gaining(cells: Cells, recipe: str, column: str, ours: str) -> str:
    places = [place for where, place in cells.items() if (where[0], where[2]) == (recipe, column)]
    found = [mean_interval(g) for place in places if len(g := gaps(place, ours)) > 1]
    return f"{sum(d.low > 0 for d in found)} of {len(found)}"


def _difference(cells: Cells, recipe: str, row: str, column: str, ours: str, theirs: str) -> str:
    place = cells.get((recipe, row, column), {})
    found = averaged(cells, recipe, column, ours, theirs) if row == "*" else gaps(place, ours, theirs)
    return f"{formatted(found)}, n = {len(found)}" if len(found) > 1 else formatted(found)
