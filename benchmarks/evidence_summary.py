"""The page of all evidence, docs/evidence.md, and its picture, with every number from lines in results/.

python benchmarks/evidence_summary.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar
import corrupted
import evidence_methods_page as methods
import evidence_rows as rows_of
import judged
import referee
import regime
import survives
import sweep
from evidence_rows import RIGHT, Rows
from evidence_sentences import sentences
from matplotlib.figure import Figure

from flatsparse.common.files import write_atomic
from flatsparse.experiments.labels import COLORS
from flatsparse.experiments.plotting import LINE, plain, save

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "evidence.md", Path(__file__).with_name("evidence_summary.md")


@dataclass(frozen=True)
class Study:
    """A study of the page.

    Attributes:
        title, about: how it is called, and what it has.
        page: its page in docs/.
        plan: its plan in benchmarks/, or the script that is one.
        read: its lines so far.
        rows: its rows, none before all runs of its plan are there.
    """

    title: str
    about: str
    page: str
    plan: str
    read: Callable[[], Sequence[Mapping[str, Any]]]
    rows: Callable[[Sequence[Mapping[str, Any]]], Rows]

    def linked(self, text: str) -> str:
        """Return a text that leads to the page; the text alone where that is not written yet."""
        return f"[{text}]({self.page})" if (PAGE.parent / self.page).exists() else text


STUDIES = (
    Study(
        "What else costs about as much",
        "digits as trained, beside regularizers, other directions, rules for ρ and SAM in fewer epochs",
        "referee.md",
        "referee.md",
        referee.measured,
        rows_of.of_referee,
    ),
    Study(
        "What survives",
        "digits nets rounded, pruned, disturbed and fine-tuned, beside SAM in fewer epochs and a random direction",
        "survives.md",
        "survives.md",
        survives.measured,
        rows_of.of_survives,
    ),
    Study(
        "Corrupted images",
        "nets of the same settings, seeds and ρ on them",
        "corrupted.md",
        "corrupted.md",
        corrupted.measured,
        rows_of.of_corrupted,
    ),
    Study(
        "Over sparsity",
        "gain and loss surface on digits from dense to 98 %, and pruning in rounds; no rivals",
        "sparsity.md",
        "sweep.md",
        sweep.measured,
        rows_of.of_sweep,
    ),
    Study(
        "Twelve methods and ρ",
        "digits and 500 images of CIFAR-10, beside random directions; which ρ, and what it does to sharpness",
        "evidence-methods.md",
        "evidence_methods.py",
        methods.read,
        rows_of.of_methods,
    ),
    Study(
        "CIFAR-10 with augmentation",
        "10,000 images, which 12 epochs do not fit: beside what the referee has on digits, changed afterwards, over sparsity",
        "cifar.md",
        "cifar.md",
        cifar.measured,
        rows_of.of_cifar,
    ),
    Study(
        "The paper's own regime",
        f"all of CIFAR-10 in {regime.SHARED['epochs']} epochs, beside label smoothing",
        "paper-regime.md",
        "regime.md",
        regime.measured,
        rows_of.of_regime,
    ),
)


def collected() -> dict[str, Rows]:
    """Return the rows of each study, by its title."""
    return {study.title: study.rows(study.read()) for study in STUDIES}


def rendered(found: Mapping[str, Rows], surface: str = "") -> str:
    """Return the page.

    Args:
        found: the rows of each study, by its title; those of the referee and of what survives must be there.
        surface: in how many cases the paper's claim about the loss surface holds.
    """
    rows = {key: row for own in found.values() for key, row in own.items()}
    linked = {key: study.linked(row.setting) for study in STUDIES for key, row in found[study.title].items()}
    done = [study for study in STUDIES if found[study.title]]
    left = [study for study in STUDIES if not found[study.title]]
    return TEMPLATE.read_text(encoding="utf-8").format(
        sentences="\n".join(f"{number}. {text}" for number, text in enumerate(sentences(rows, surface), 1)),
        table=table(rows, linked),
        missing="".join(
            f"- {study.title}: {study.about}. The runs of `benchmarks/{study.plan}` are not complete.\n"
            for study in left
        ),
        pages="\n".join(f"- {study.linked(study.title)}: {study.about}." for study in done),
    )


def table(rows: Rows, linked: Mapping[tuple[str, float], str]) -> str:
    """Return the table, a row for each setting and kind of labels.

    Args:
        linked: the settings of rows, which lead to pages.
    """
    head = [
        "setting",
        "labels",
        "n",
        "claims",
        "plain",
        "S²-SAM − plain",
        "best rival − plain",
        "S²-SAM − rival",
        "verdict",
    ]
    cells = []
    for (name, noise), row in rows.items():
        rival = row.rival
        cells.append(
            [
                linked[name, noise],
                _labels(noise),
                str(len(row.gain.gaps)),
                str(row.family),
                judged.mean(row.plain) if row.plain else "",
                row.text,
                rival.text if rival else "",
                rival.ours.text if rival else "",
                row.verdict,
            ]
        )
    return judged.table(head, cells)


def picture(rows: Rows) -> Figure:
    """Draw S²-SAM's difference to plain training in each row, and below it that of its best rival; filled where sure."""
    figure = Figure(figsize=(8.6, 1.2 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for height, row in enumerate(rows.values()):
        dots = [("S²-SAM", COLORS["s2sam"], -0.15, row.gain.gaps, row.gain.sure)]
        if row.rival:
            dots.append((row.rival.name, COLORS["sam"], 0.15, row.rival.gain.gaps, row.rival.gain.sure))
        for name, color, shift, gaps, sure in dots:
            d, inside = judged.mean_interval(gaps), color if sure else "white"
            half = d.half if d.bounded else 0.0
            axis.errorbar(
                [d.mean], [height + shift], xerr=half, fmt="o", markersize=5, color=color, markerfacecolor=inside
            )
            if name != "S²-SAM":
                where = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
                axis.annotate(name, (d.mean + half, height + shift), color=color, **where)
    axis.axvline(0, color=LINE, linewidth=1)
    names = [f"{row.setting}\n{_labels(noise)} labels" for (_, noise), row in rows.items()]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axis.set_xlabel("difference to plain training, points")
    plain(axis, "x")
    shown = {"S²-SAM": COLORS["s2sam"], "the best of what costs as much": COLORS["sam"]}
    handles = [axis.plot([], [], "o-", color=color, label=text)[0] for text, color in shown.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _labels(noise: float) -> str:
    return "right" if noise == RIGHT else f"{noise:.0%} wrong".replace("%", " %")


def main() -> None:
    found = collected()
    if not all(found[study.title] for study in STUDIES[:2]):
        raise SystemExit(
            "run benchmarks/referee.py and benchmarks/survives.py first: the sentences are about their runs"
        )
    write_atomic(PAGE, rendered(found, rows_of.surface(sweep.measured())).encode())
    save(picture({key: row for own in found.values() for key, row in own.items()}), PAGE.with_suffix(".png"))


if __name__ == "__main__":
    main()
