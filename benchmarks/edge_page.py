"""The guide to small devices, docs/edge.md, with every number from results/edge.jsonl.

python benchmarks/edge_page.py   # --partial prints it from the rows that there are
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judged
from edge import ARMS, FORMS, NETS, measured, rows
from planned import missing, write_page

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "edge.md", Path(__file__).with_name("edge_page.md")
TITLES = {"mlp": "An MLP", "kws_cnn": "A convolutional net", "mobilenet": "MobileNet-V2"}
WANTED, FEWER_CYCLES, FEWER_BYTES, LOSS = ("2:4", "90 %"), 3.0, 8.0, 0.5  # what a row would have to reach, by the plan
PLAIN, OURS = ARMS
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """The lines of one form of one net, of all its seeds, in their order."""

    net: str
    form: str
    arm: str
    lines: tuple[Line, ...]

    def values(self, name: str) -> list[float]:
        """Return one of the accuracies, seed by seed."""
        return [line[name] for line in self.lines]

    def cost(self, memory: str, name: str) -> float:
        """Return the mean of an entry of Vela's estimate over the seeds."""
        return statistics.fmean(line["estimates"][memory][name] for line in self.lines)

    @property
    def program(self) -> float:
        """The mean size of the program, in bytes."""
        return statistics.fmean(line["program_bytes"] for line in self.lines)


@dataclass(frozen=True)
class Saved:
    """What a form saves beside the dense net, and what it loses.

    Attributes:
        gaps: the differences of int8 accuracy to the dense int8 net, seed by seed, in points.
        bytes, flash, sram: how many times fewer encoded bytes of weights, and cycles with weights in flash and in SRAM.
    """

    gaps: tuple[float, ...]
    bytes: float
    flash: float
    sram: float

    @property
    def loss(self) -> float:
        """The mean loss of int8 accuracy, in points."""
        return -statistics.fmean(self.gaps)


def trained(lines: Iterable[Line]) -> dict[tuple[str, str, str], Trained]:
    """Return the lines of each net, form and arm, in the order of the plan; of those that are there."""
    found: dict[tuple[str, str, str], list[Line]] = {
        (net, form, arm): [] for net in NETS for form in FORMS for arm in ARMS
    }
    for line in sorted(lines, key=lambda line: line["seed"]):
        found[line["net"], line["form"], line["arm"]].append(line)
    return {key: Trained(*key, tuple(own)) for key, own in found.items() if own}


def saved(one: Trained, dense: Trained) -> Saved:
    """Compare a form with the dense net of the same seeds."""
    return Saved(
        tuple(judged.paired(one.values("int8"), dense.values("int8"))),
        dense.cost("flash", "encoded_weight_bytes") / one.cost("flash", "encoded_weight_bytes"),
        dense.cost("flash", "cycles") / one.cost("flash", "cycles"),
        dense.cost("sram", "cycles") / one.cost("sram", "cycles"),
    )


def whole_seeds(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of those nets and seeds of which all rows are there."""
    count = Counter((line["net"], line["seed"]) for line in lines)
    return [line for line in lines if count[line["net"], line["seed"]] == len(FORMS) * len(ARMS)]


def rendered(lines: Sequence[Line]) -> str:
    """Return the page, of whole seeds."""
    lines = whole_seeds(lines)
    found = trained(lines)
    tables = "\n\n".join(
        f"**{TITLES[net]}** (`{net}`), {_seeds(found[net, 'dense', PLAIN])}\n\n{net_table(net, found)}"
        for net in NETS
        if (net, "dense", PLAIN) in found
    )
    says = "\n".join(f"- {sentence}" for sentence in sentences(found))
    return TEMPLATE.read_text(encoding="utf-8").format(tables=tables, says=says, runs=len(lines))


def net_table(net: str, found: Mapping[tuple[str, str, str], Trained]) -> str:
    """Return the table of a net; costs are those of plain training."""
    head = [
        "row",
        "float",
        "int8",
        "to dense",
        "S²-SAM to plain",
        "program",
        "weights",
        "cycles, flash",
        "cycles, SRAM",
    ]
    dense, table = found[net, "dense", PLAIN], []
    for form in FORMS:
        if (own := found.get((net, form, PLAIN))) is None:
            continue
        beside, ours = saved(own, dense), found.get((net, form, OURS))
        table.append(
            [
                form,
                judged.mean(own.values("float")),
                judged.mean(own.values("int8")),
                judged.difference(beside.gaps) if form != "dense" else "",
                judged.difference(judged.paired(ours.values("int8"), own.values("int8"))) if ours else "",
                _kilobytes(own.program),
                f"{_kilobytes(own.cost('flash', 'encoded_weight_bytes'))}{_times(beside.bytes)}",
                f"{own.cost('flash', 'cycles'):,.0f}{_times(beside.flash)}",
                f"{own.cost('sram', 'cycles'):,.0f}{_times(beside.sram)}",
            ]
        )
    return judged.table(head, table)


def sentences(found: Mapping[tuple[str, str, str], Trained]) -> list[str]:
    """Return what the rows say of the plan's question."""
    reached, beside = [], []
    for (net, form, arm), own in found.items():
        if form in WANTED and (dense := found.get((net, "dense", arm))) is not None:
            one = saved(own, dense)
            cheap = max(one.flash, one.sram) >= FEWER_CYCLES or one.bytes >= FEWER_BYTES
            name = f"`{net}` {form}, {arm}"
            if cheap and one.loss <= LOSS:
                reached.append(
                    f"{name} (accuracy {_signed(one.gaps)}, cycles ÷ {one.flash:.1f} with weights in flash and ÷ {one.sram:.1f}"
                    f" in SRAM, bytes ÷ {one.bytes:.1f})"
                )
            else:
                beside.append(name)
    gaps = {
        net: [
            gap
            for form in FORMS
            if (net, form, OURS) in found
            for gap in judged.paired(found[net, form, OURS].values("int8"), found[net, form, PLAIN].values("int8"))
        ]
        for net in NETS
    }
    rounding = {
        arm: [
            gap
            for own in found.values()
            if own.arm == arm
            for gap in judged.paired(own.values("int8"), own.values("float"))
        ]
        for arm in ARMS
    }
    largest = {
        net: max(abs(line["int8"] - line["float"]) for own in found.values() if own.net == net for line in own.lines)
        for net in gaps
        if gaps[net]
    }
    steps = [line["reference"] for own in found.values() for line in own.lines]
    left = sum(bool(line["on_cpu"]) for own in found.values() for line in own.lines)
    return [
        f"**Half a point and three times fewer cycles or eight times fewer bytes**, at 2:4 or 90 %, beside the dense net of the"
        f" same arm: {judged.listed(reached, 'no row')}. Not so: {judged.listed(beside)}.",
        f"**S²-SAM minus plain**, int8, over all rows of a net: "
        f"{judged.listed(f'`{net}` {judged.difference(own)}' for net, own in gaps.items() if own)}.",
        f"**Rounding** to int8 moves accuracy by {_signed(rounding[PLAIN])} points in the mean after plain training and by"
        f" {_signed(rounding[OURS])} after S²-SAM, and in any row by at most:"
        f" {judged.listed(f'`{net}` {gap:.1f}' for net, gap in largest.items())}.",
        f"**Outputs.** In the reference model of TOSA, the programs that Vela reads give the int8 outputs of torch up to"
        f" {max(steps):.1g} of the largest, in {sum(step == 0 for step in steps)} of {len(steps)} nets bit for bit; "
        + (
            "every operator of every net runs on the processor."
            if not left
            else f"{left} nets leave operators to the CPU."
        ),
    ]


def _seeds(one: Trained) -> str:
    count = len(one.lines)
    return f"{count} seeds" if count > 1 else "one seed"


def _signed(values: Sequence[float]) -> str:
    return judged.signed(statistics.fmean(values), 2)


def _kilobytes(count: float) -> str:
    return f"{count / 1000:,.1f} kB"


def _times(ratio: float) -> str:
    return "" if ratio == 1 else f" (÷ {ratio:.1f})"


if __name__ == "__main__":
    lines = measured()
    left = missing(lines, rows(Path()))
    far = f"{len(left)} of {len(list(rows(Path())))} rows are missing" if left else ""
    write_page(PAGE, lines, far, rendered)
