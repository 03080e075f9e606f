"""All tables of a store on one page."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.common.files import read, write_atomic
from flatsparse.experiments.recipes.recipe import SCALES
from flatsparse.experiments.report import drawing, pages
from flatsparse.experiments.report.cells import Told, command, measured
from flatsparse.experiments.report.script import SCRIPT, STYLE
from flatsparse.experiments.report.store import CURVES, embedded
from flatsparse.experiments.reproduce.telling import (
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

MARK = '<meta name="generator" content="flatsparse report">'
WIDEST = 1200  # pixels of an embedded picture
COLORS = 128
INTERVALS = (
    "Dot: difference measured; line: its 95 % interval, with an arrow where it goes on; diamond: difference printed."
    " Published: unknown where we do not know what was printed, if anything was; none for what is ours. Each row opens its runs;"
    " each heading sorts."
)
PARETO = (
    "FLOPs are a share of one dense training, by count; no mark is as cheap as one on the line and better. Point at a mark, tap"
    " it, or go with tab and arrow keys; Enter opens its runs."
)
# heading, and whether its column is sorted by number
HEAD = (
    ("row", False),
    ("column", False),
    ("trained", False),
    ("measured", True),
    ("n", True),
    ("published", True),
    ("difference", True),
    ("drawn", True),
    ("its published", True),
    ("verdict", False),
    ("FLOPs", True),
)


def write(records: Sequence[Mapping[str, Any]], store: Path, out: Path) -> Path:
    """Write the page of some tables and their runs. Returns the file.

    Raises: InputError when ``out`` is something else than such a page.
    """
    if out.is_dir() or (out.is_file() and MARK.encode() not in read(out)[:2000]):
        raise InputError(f"'{out}' exists and is no report of tables: give another --out")
    told = Told(store)
    parts = [
        "<h1>The paper's tables, reproduced</h1>",
        _text_of("p", "S²-SAM (Ji et al., NeurIPS 2024): what was printed, and what was measured here."),
        "<nav aria-label='Tables'><ul>" + "".join(_entry(record) for record in records) + "</ul></nav>",
        "<dl>"
        + "".join(f"<dt>{_verdict(name)}</dt>{_text_of('dd', what)}" for name, what in VERDICTS.items())
        + "</dl>",
    ]
    for record in records:
        parts += _section(record, told)
    data = {"cells": told.cells, "runs": told.runs, "surfaces": told.surfaces(), "curves": CURVES}
    sealed = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    head = (
        f'<meta charset="utf-8">{MARK}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>flatsparse: tables reproduced</title><style>{pages.STYLE}{STYLE}</style>"
    )
    body = "\n".join([*parts, '<dialog aria-labelledby="cell-title"></dialog>'])
    scripts = f'<script type="application/json" id="data">{sealed}</script><script>{SCRIPT}</script>'
    whole = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n{scripts}</body></html>\n'
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{out.parent}' ({problem.strerror}): give another --out") from None
    write_atomic(out, whole.encode(errors="replace"))
    return out


def _entry(record: Mapping[str, Any]) -> str:
    counts = counted(record["rows"])
    told = ", ".join(f"{counts[name]} {_verdict(name)}" for name in VERDICTS if counts[name]) or "no claim judged"
    return f'<li><a href="#{_text(_anchor(record))}">{_text(record["name"])}, {_text(record["scale"])}</a>: {told}</li>'


def _anchor(record: Mapping[str, Any]) -> str:
    return f"{record['name']}-{record['scale']}"


def _section(record: Mapping[str, Any], told: Told) -> list[str]:
    rows, far = record["rows"], drawing.reach(record["rows"])
    bases = {(r["row"], r["column"]): r for r in rows if r["sharpness"] == "none" and not r["control"]}
    bases = {place: base for place, base in bases.items() if base["folders"]}
    places = [(r["row"], r["column"]) for r in rows]
    numbers = [
        told.add(record, row, None if (base := bases.get(place)) is row else base)
        for place, row in zip(places, rows, strict=True)
    ]
    costs = any(row["also"] for row in rows)
    head = [column for column in HEAD if costs or column[0] != "FLOPs"]
    body = "".join(_row(record, row, number, far, costs) for row, number in zip(rows, numbers, strict=True))
    top = "".join(_heading(*column) for column in head)
    counts = sorted({len(row["values"]) for row in rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    title = f"{record['name']}: {record['title']}"
    once = [_sentence(f"{ONCE}.")] if any(row["same_runs"] for row in rows) else []
    notes = [*once, *record["said"], *record["notes"], *(f"Not run: {reason}." for reason in reasons(rows))]
    return [
        f'<h2 id="{_text(_anchor(record))}">{_text(title)}</h2>',
        _text_of("p", f"{record['source']}. Scale {record['scale']}: {SCALES[record['scale']]}."),
        _text_of("p", f"Measured: {record['metric']}, {n}."),
        *([_text_of("p", _sentence(claim(record)) + ".")] if any(row["verdict"] for row in rows) else []),
        f'<div class="wide"><table class="sortable"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>',
        _note(f"{INTERVALS} Drawings end at ±{far:.3g}."),
        *_plots(record, list(zip(numbers, rows, strict=True))),
        "<ul>" + "".join(_text_of("li", sentence) for sentence in notes) + "</ul>",
        *_pictures(record, told.store),
        *([_text_of("pre", again)] if (again := command(record, told.store)) else []),
    ]


def _heading(name: str, numeric: bool) -> str:
    about = "data-number" if numeric else 'class="word"'
    return f'<th scope="col" aria-sort="none" {about}><button type="button">{_text(name)}</button></th>'


def _row(record: Mapping[str, Any], row: Mapping[str, Any], number: int, far: float, costs: bool) -> str:
    d, verdict, published = row["difference"], row["verdict"], row["published"]
    style = _class(verdict) if verdict else ""
    gap, place = "–", f"{row['column']}, {label(row)}"  # the place stands in for its columns on a phone
    if d:
        low, high = d["interval95"]
        gap = f"{d['mean']:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")
    cells = [
        f'<th scope="row"><button type="button" data-cell="{number}" data-place="{_text(place)}" aria-haspopup="dialog">'
        f"{_text(row['row'])}</button></th>",
        f'<td class="word">{_text(row["column"])}</td><td class="word">{_text(label(row))}</td>',
        _number(measured(row), row["mean"]),
        _number(str(len(row["values"])), len(row["values"])),
        _number(printed(record, row), published and published["value"]),
        _number(gap, d and d["mean"]),
        _number(drawing.interval(d, far, record["comparable"]) if d else "", d and d["mean"], style),
        _number(printed_difference(record, row) if d else "–", d and d["published"]),
        f'<td class="word">{_verdict(verdict, judged(row)) if verdict else _text(judged(row)) or "–"}</td>',
    ]
    if costs:
        cost = row["also"].get("flops_train")
        cells.append(_number("–" if cost is None else f"{cost:.3f}", cost))
    return f"<tr>{''.join(cells)}</tr>"


def _number(shown: str, value: float | None, style: str = "") -> str:
    about = "" if value is None else f' data-value="{value!r}"'
    about += f' class="{style}"' if style else ""
    return f"<td{about}>{shown if shown.startswith('<svg') else _text(shown)}</td>"


def _plots(record: Mapping[str, Any], rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    told = [(n, row) for n, row in rows if row["mean"] is not None and row["also"]]
    if not told:
        return []
    kinds = {(row["sharpness"], bool(row["control"])): row for _, row in told}
    key = "".join(
        f'<span><svg viewBox="-8 -8 16 16" aria-hidden="true">{drawing.mark(row)}</svg>'
        f" {_text(label({**row, 'control': None}))}{' (control)' if row['control'] else ''}</span>"
        for row in kinds.values()
    )
    drawn = [
        drawing.pareto([(n, row) for n, row in told if row["column"] == column], record)
        for column in dict.fromkeys(row["column"] for _, row in told)
    ]
    said = f'<p class="told-of" aria-live="polite">{_text(PARETO)}</p>'
    return [
        f"<h3>{_text(_sentence(record['metric']))}, against FLOPs of training</h3>",
        f'<p class="key">{key}</p><section><div class="plots">{"".join(drawn)}</div>{said}</section>',
    ]


def _pictures(record: Mapping[str, Any], store: Path) -> Iterable[str]:
    """The pictures that were drawn, made small; accuracy against FLOPs is on the page already."""
    for name in record["pictures"]:
        if name == f"{_anchor(record)}-flops.png":
            continue
        file, stream = (store / name).resolve(), io.BytesIO()
        if not file.is_file() or not file.is_relative_to(store.resolve()):  # a link may lead to a picture of others
            yield _note(f"The picture {name} is not there any more.")
            continue
        try:
            with Image.open(file, formats=("png",)) as picture:
                picture.thumbnail((WIDEST, 4 * WIDEST))
                picture.convert("RGB").quantize(COLORS).save(stream, "png", optimize=True)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            yield _note(f"The picture {name} is damaged.")
            continue
        told, shown = _text(Path(name).stem), embedded(stream.getvalue())
        yield f'<figure><img src="{shown}" alt="{told}"><figcaption>{told}</figcaption></figure>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _verdict(name: str, told: str | None = None) -> str:
    return f'<span class="verdict {_class(name)}">{_text(told or name)}</span>'


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _text(text: str) -> str:
    return html.escape(text)


def _text_of(tag: str, text: str) -> str:
    return f"<{tag}>{_text(text)}</{tag}>"


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'
