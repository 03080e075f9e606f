"""Files of records, tables and arrays at random: of other kinds, nested deeply, not finite, in other encodings, or folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from flatsparse.common.json_files import with_checksum

from .calling import QUICK, Fault, Kept, called
from .command_lines import NAMES, WRITTEN_AGAIN, without_work

ON_CPU = ("--device", "cpu", "--jobs", "1")
COMPARE = ("compare", "own.py:train", "--seeds", "1", "--sharpness", "s2sam", *ON_CPU, "--out", "compared", "--resume")
OF_RUN = (
    ("train", *QUICK, "--out", "run", "--resume"),
    ("evaluate", "run", "--images", "20", *ON_CPU),
    ("export", "run", "--format", "masks", "--images", "20", "--out", "new"),
    ("landscape", "run", "other", *ON_CPU, "--out", "new"),
    ("bench", "sparse", "--run", "run", "--quick", "--device", "cpu"),
)
OF_STORE = (("report", "--store", "store", "--out", "new.html"), ("reproduce", "own.py", *ON_CPU, "--out", "store"))
READERS = {
    "run/config.json": OF_RUN,
    "run/result.json": OF_RUN,
    "run/metrics.jsonl": OF_RUN,
    "compared/comparison.json": (COMPARE,),
    "compared/runs/none-seed0/result.json": (COMPARE,),
    "compared/runs/s2sam-seed0/result.json": (COMPARE,),
    "store/own-smoke.json": OF_STORE,
    "store/runs/*/result.json": OF_STORE,
    "store/runs/*/config.json": OF_STORE,
    "store/runs/*/metrics.jsonl": OF_STORE,
}
DEEP = "[" * 3000 + "]" * 3000
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, 10**400, -1, 2**63]),
    st.floats(),
    NAMES,
    st.just("../../etc/passwd"),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
RAW = st.one_of(
    st.sampled_from(
        [
            b"",
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\x00}\x00",
            b"\xff",
            b"null",
            b"[]",
            b"3",
            b"{",
            b'{"a": NaN}',
            b'{"a":1,"a":2}',
            b"\x00" * 9,
        ]
    ),
    st.sampled_from(
        [f'{{"settings": {DEEP}}}'.encode(), b"9" * 5000, b'"\\ud800"', b'{"sha256": 3}', "{}".encode("utf-16")]
    ),
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
)
Step = tuple[int, str]


def changed(draw: st.DrawFn, value: Any) -> Any:
    """Return a nested value with a part that is gone, added or of another kind."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 5)):
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        key = draw(st.sampled_from(list(copy) if isinstance(copy, dict) else range(len(copy))))
        if not draw(st.integers(0, 5)):
            del copy[key]
        else:
            copy[key] = changed(draw, copy[key])
        return copy
    if isinstance(value, dict) and draw(st.booleans()):
        return {**value, draw(NAMES): draw(JSON)}
    if isinstance(value, str) and draw(st.booleans()):
        return draw(NAMES)
    if isinstance(value, (int, float)) and draw(st.booleans()):
        return draw(st.sampled_from([0, -1, 1e308, -0.0, float("nan"), float("inf"), 10**400, 2**63, 0.5, value + 1]))
    return draw(JSON)


@st.composite
def hostile_files(draw: st.DrawFn) -> tuple[tuple[str, ...], str, Any]:
    """A command, a file that it reads, and what is to be in it: bytes, ``None`` for a folder, or a function of what was there."""
    pattern = draw(st.sampled_from(sorted(READERS)))
    line = draw(st.sampled_from(READERS[pattern]))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return line, pattern, None
    if kind <= 2:
        return line, pattern, draw(RAW)
    file = _file(pattern)
    lines = (
        file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text(encoding="utf-8")]
    )
    number = draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    value.pop("sha256", None)
    for _ in range(draw(st.integers(1, 2))):
        value = changed(draw, value)
    lines[number] = json.dumps(with_checksum(value) if isinstance(value, dict) else value)
    return line, pattern, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def check(case: tuple[tuple[str, ...], str, Any], files: Kept) -> str:
    """Call a command on a file of another content. Returns what came of it."""
    line, pattern, content = case
    file = _file(pattern)
    with files.watched((*WRITTEN_AGAIN, file.name, "compare.json", "compare.png", "own-smoke.json")), without_work():
        if content is None:
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(content)
        outcome = called(line)
        if outcome.status and (
            not file.is_dir() if content is None else not file.is_file() or file.read_bytes() != content
        ):
            raise Fault(f"{line}: {file}: refused, but written over or gone: {outcome.err}")
        if content is None:
            shutil.rmtree(file)
    return "refused" if outcome.status else "taken"


def _file(pattern: str) -> Path:
    return sorted(Path().glob(pattern))[0]
