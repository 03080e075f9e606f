"""The page of all tables of a store."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.common.files import read
from flatsparse.experiments.recipes.recipe import SCALES
from flatsparse.experiments.report import figures, html
from flatsparse.experiments.report.cells import Cells, command, measured
from flatsparse.experiments.report.interval_mark import IntervalMark, interval_mark, reach
from flatsparse.experiments.report.store import CURVES, embedded
from flatsparse.experiments.reproduce.pictures import kinds
from flatsparse.experiments.reproduce.text import (
    ONCE,
    claim,
    counted,
    judged,
    label,
    printed,
    printed_difference,
    reasons,
)
from flatsparse.experiments.reproduce.verdict import VERDICTS
from flatsparse.experiments.stats import Interval

GENERATOR = b'content="flatsparse report"'  # by which a page of ours is known
WIDEST = 1200  # pixels of an embedded picture
PALETTE = 128  # colors of one
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: shown where there is no mark.
        value: the number that it is sorted by.
        mark: a drawing in place of the text.
        verdict: colors it.
    """

    text: str
    value: float | None = None
    mark: IntervalMark | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its heading, a row's cell (of the record, the row and the reach of drawings), and how it is sorted."""

    title: str
    cell: Callable[[Row, Row, float], Cell]
    by_number: bool = True
    needs_flops: bool = False


def _published(record: Row, row: Row) -> Cell:
    return Cell(printed(record, row), row["published"] and row["published"]["value"])


def _difference(row: Row) -> Cell:
    d = row["difference"]
    return Cell(str(Interval.from_json(d)), d["mean"]) if d else Cell("–")


def _drawn(record: Row, row: Row, far: float) -> Cell:
    d = row["difference"]
    if not d:
        return Cell("")
    return Cell("", d["mean"], interval_mark(d, far, record["comparable"]), row["verdict"] or "")


def _its_published(record: Row, row: Row) -> Cell:
    d = row["difference"]
    return Cell(printed_difference(record, row), d["published"]) if d else Cell("–")


def _flops(row: Row) -> Cell:
    cost = row["also"].get("flops_train")
    return Cell("–") if cost is None else Cell(f"{cost:.3f}", cost)


COLUMNS = (  # after the row's name, which opens its runs
    Column("column", lambda record, row, far: Cell(row["column"]), by_number=False),
    Column("trained", lambda record, row, far: Cell(label(row)), by_number=False),
    Column("measured", lambda record, row, far: Cell(measured(row), row["mean"])),
    Column("n", lambda record, row, far: Cell(str(len(row["values"])), len(row["values"]))),
    Column("published", lambda record, row, far: _published(record, row)),
    Column("difference", lambda record, row, far: _difference(row)),
    Column("drawn", _drawn),
    Column("its published", lambda record, row, far: _its_published(record, row)),
    Column("verdict", lambda record, row, far: Cell(judged(row) or "–", verdict=row["verdict"] or ""), by_number=False),
    Column("FLOPs", lambda record, row, far: _flops(row), needs_flops=True),
)


def write(records: Sequence[Row], store: Path, out: Path) -> Path:
    """Write the page of some tables and their runs. Returns the file.

    Raises: InputError when ``out`` is something else than such a page.
    """
    if out.is_dir() or (out.is_file() and GENERATOR not in read(out)[:2000]):
        raise InputError(f"'{out}' exists and is no report of tables: give another --out")
    cells = Cells(store)
    sections = [_section(record, cells) for record in records]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{out.parent}' ({problem.strerror}): give another --out") from None
    return html.write(
        out,
        "tables.html.j2",
        title="flatsparse: tables reproduced",
        verdicts=VERDICTS,
        sections=sections,
        data={"cells": cells.cells, "runs": cells.runs, "surfaces": cells.surfaces(), "curves": CURVES},
    )


def _section(record: Row, cells: Cells) -> dict[str, Any]:
    """A table for the template; its rows go into ``cells`` too."""
    rows, far = record["rows"], reach(record["rows"])
    numbers = _numbers(record, cells)
    columns = [c for c in COLUMNS if not c.needs_flops or any(row["also"] for row in rows)]
    counts = sorted({len(row["values"]) for row in rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    once = [f"{_sentence(ONCE)}."] if any(row["same_runs"] for row in rows) else []
    return {
        "anchor": _name(record),
        "short": f"{record['name']}, {record['scale']}",
        "counts": {name: count for name in VERDICTS if (count := counted(rows)[name])},
        "title": f"{record['name']}: {record['title']}",
        "source": f"{record['source']}. Scale {record['scale']}: {SCALES[record['scale']]}.",
        "metric": record["metric"],
        "n": n,
        "claim": f"{_sentence(claim(record))}." if any(row["verdict"] for row in rows) else "",
        "columns": columns,
        "rows": [
            {
                "number": number,
                "name": row["row"],
                "place": f"{row['column']}, {label(row)}",  # stands in for these columns on a phone
                "cells": [column.cell(record, row, far) for column in columns],
            }
            for number, row in zip(numbers, rows, strict=True)
        ],
        "reach": f"{far:.3g}",
        "plots": _plots(record, numbers),
        "notes": [*once, *record["said"], *record["notes"], *(f"Not run: {reason}." for reason in reasons(rows))],
        "pictures": list(_pictures(record, cells.store)),
        "command": command(record, cells.store),
    }


def _numbers(record: Row, cells: Cells) -> list[int]:
    """The numbers that a table's rows get in the page, each compared with the plain one of its place."""
    plain = [r for r in record["rows"] if r["sharpness"] == "none" and not r["control"]]
    bases = {(row["row"], row["column"]): row for row in plain}
    bases = {place: base for place, base in bases.items() if base["folders"]}
    numbers = []
    for row in record["rows"]:
        base = bases.get((row["row"], row["column"]))
        numbers.append(cells.add(record, row, None if base is row else base))
    return numbers


def _plots(record: Row, numbers: Sequence[int]) -> dict[str, Any] | None:
    """The plots of accuracy against FLOPs, one for each column, with their key; None where no row has both."""
    drawn = [(n, r) for n, r in zip(numbers, record["rows"], strict=True) if r["mean"] is not None and r["also"]]
    if not drawn:
        return None
    columns = dict.fromkeys(row["column"] for _, row in drawn)
    return {
        "title": f"{_sentence(record['metric'])}, against FLOPs of training",
        "key": {name: figures.mark(row) for name, row in kinds([row for _, row in drawn]).items()},
        "figures": {
            column: figures.pareto([(n, row) for n, row in drawn if row["column"] == column], record["better"])
            for column in columns
        },
    }


def _pictures(record: Row, store: Path) -> Iterator[dict[str, str]]:
    """The pictures that were drawn, made small, or why they cannot be shown; the plots are on the page already."""
    for name in record["pictures"]:
        if name == f"{_name(record)}-flops.png":
            continue
        file, stream = (store / name).resolve(), io.BytesIO()
        if not file.is_file() or not file.is_relative_to(store.resolve()):  # a link may lead to a picture of others
            yield {"problem": f"The picture {name} is not there any more."}
            continue
        try:
            with Image.open(file, formats=("png",)) as picture:
                picture.thumbnail((WIDEST, 4 * WIDEST))
                picture.convert("RGB").quantize(PALETTE).save(stream, "png", optimize=True)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            yield {"problem": f"The picture {name} is damaged."}
            continue
        yield {"problem": "", "name": Path(name).stem, "source": embedded(stream.getvalue())}


def _name(record: Row) -> str:
    return f"{record['name']}-{record['scale']}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
