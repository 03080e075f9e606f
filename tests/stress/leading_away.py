"""Files from elsewhere that lead out of their folder: paths in records, indices and tables, links, and what is no file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, with_checksum
from flatsparse.sparse.import_masks import masks_from

from .calling import QUICK, Fault, Kept, Outcome, called
from .command_lines import without_work
from .hostile_files import OF_RUN, OF_STORE

SECRET = b"a secret that is outside"
AWAY = (
    "../away/secret",
    "/etc/passwd",
    "{away}/secret",
    "./../away/secret",
    "x/../../away/secret",
    "link/secret",
    "file://{away}/secret",
    "~/secret",
    "\\\\host\\secret",
    "C:\\secret",
    "..",
    "",
    "a\x00b",
    "secret\n",
)
SECONDS = 60  # for one reading; it is a fault to take more
CHANGED = (  # by the case itself
    *(
        "own-smoke.json",
        "config.json",
        "result.json",
        "metrics.jsonl",
        "0.png",
        "own-smoke-flops.png",
        "model.safetensors",
    ),
    *("masks.safetensors", "report.html"),
)
Case = tuple[str, str, int]


def _away() -> Path:
    """Return a folder outside, with pictures and records that nobody is to see."""
    away = Path("..", "away").resolve()
    if not away.exists():
        from PIL import Image

        away.mkdir()
        Image.new("RGB", (8, 8), (7, 7, 7)).save(away / "secret.png", pnginfo=_marked())
        shutil.copy(away / "secret.png", away / "secret")
    return away


def _marked() -> Any:
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("it", SECRET.decode())
    return about


def _rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    value.pop("sha256")
    change(value)
    file.write_text(json.dumps(with_checksum(value)), encoding="utf-8")


def in_a_store_s_record(path: str, number: int) -> Outcome:
    """A table's record with pictures or runs elsewhere."""
    key = ("pictures", "folders")[number % 2]

    def change(record: dict[str, Any]) -> None:
        (record if key == "pictures" else record["rows"][0])[key] = [path]

    _rewrite(Path("store/own-smoke.json"), change)
    return called(OF_STORE[0])


def in_a_run_s_record(path: str, number: int) -> Outcome:
    """A run's files with data, a folder of data or a hash of a file elsewhere."""
    if number % 3 == 2:
        _rewrite(Path("run/result.json"), lambda result: result["files"].update({path: "x"}))
    else:
        _rewrite(
            Path("run/config.json"), lambda config: config["settings"].update({("data", "data_dir")[number % 3]: path})
        )
        _rewrite(Path("run/result.json"), lambda result: result.pop("files"))
    return called(OF_RUN[number % len(OF_RUN)])


def in_an_index(path: str, number: int) -> Outcome:
    """A checkpoint's index with a part elsewhere; the library's reader of masks, as no command takes one."""
    Path("new").mkdir()
    Path("new/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": path}}), encoding="utf-8")
    try:
        masks_from("new")
    except InputError as problem:
        return Outcome(2, "", str(problem))
    raise Fault(f"an index that names {path!r} was read")


def in_a_table(path: str, number: int) -> Outcome:
    """A parquet file whose images are paths, or bytes beside a path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    away = (_away() / "secret").read_bytes()
    entries: list[Any] = [
        path,
        {"path": path},
        {"bytes": None, "path": path},
        {"bytes": path.encode(errors="replace"), "path": path},
    ]
    folder = Path("new")
    folder.mkdir()
    for part in ("train", "test"):
        pq.write_table(
            pa.table({"image": [_entry(entries[number % 4], away)] * 4, "label": [0, 1, 0, 1]}),
            folder / f"{part}.parquet",
        )
    size = [["--image-size", "8"], []][number % 2]
    return called(
        ["train", *QUICK[:1], "2", "--validation-size", "1", *QUICK[4:], "--data", "new", *size, "--out", "out"]
    )


def _entry(value: Any, away: bytes) -> Any:
    def plain(text: Any) -> Any:
        return text.encode(errors="replace").decode() if isinstance(text, str) else text

    return {name: plain(part) for name, part in value.items()} if isinstance(value, dict) else plain(value)


def by_a_link(path: str, number: int) -> Outcome:
    """A picture of a store, or a record, that is a link to something elsewhere."""
    target = path.replace("\0", "") or "nowhere"
    file = (
        "store/own-smoke-flops.png",
        "store/picture.png",
        "run/result.json",
        "run/metrics.jsonl",
        "store/own-smoke.json",
    )[number % 5]
    Path(file).unlink(missing_ok=True)
    Path(file).symlink_to(target)
    if number % 5 <= 1 and read_json(Path("store/own-smoke.json")):
        _rewrite(Path("store/own-smoke.json"), lambda record: record.update(pictures=[Path(file).name]))
    return called((OF_STORE if file.startswith("store") else OF_RUN)[0])


def what_is_no_file(path: str, number: int) -> Outcome:
    """A pipe or a device in the place of a file, which nobody would come to write to."""
    files = (
        "run/result.json",
        "run/metrics.jsonl",
        "run/model.safetensors",
        "run/masks.safetensors",
        "run/config.json",
        "store/own-smoke.json",
    )
    file = Path(files[number % len(files)])
    file.unlink()
    if number % 2:
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/null")
    return called((OF_STORE if files[number % len(files)].startswith("store") else OF_RUN)[0])


def images_that_are_none(path: str, number: int) -> Outcome:
    """A pipe, a device, or a circle of links among the images of a folder."""
    file = Path("images/train/a", ("9.png", "0.png")[number % 2])
    file.unlink(missing_ok=True)
    if number % 3 == 0:
        os.mkfifo(file)
    else:
        file.symlink_to(("/dev/null", file.name)[number % 3 - 1])
    size = [["--image-size", "8"], []][number % 2]
    return called(
        ["train", "--train-size", "8", "--validation-size", "2", *QUICK[4:], "--data", "images", *size, "--out", "out"]
    )


def arrays_that_are_none(path: str, number: int) -> Outcome:
    """A pipe or a device in the place of arrays, of tables or of lists of classes."""
    folder = Path("new")
    folder.mkdir()
    for part in ("train", "test"):
        file = folder / f"{part}.{('npz', 'parquet')[number % 2]}"
        if number % 4 < 2:
            os.mkfifo(file)
        else:
            file.symlink_to("/dev/null")
    return called(["train", *QUICK, "--data", "new", *([] if number % 3 else ["--image-size", "8"]), "--out", "out"])


PLACES = {f.__name__: f for f in (in_a_store_s_record, in_a_run_s_record, in_an_index, in_a_table, by_a_link)}
if hasattr(os, "mkfifo"):
    PLACES |= {f.__name__: f for f in (what_is_no_file, images_that_are_none, arrays_that_are_none)}


@st.composite
def leading_away(draw: st.DrawFn) -> Case:
    """A place, a path, and a number that chooses among the kinds of the place."""
    return draw(st.sampled_from(sorted(PLACES))), draw(st.sampled_from(AWAY)), draw(st.integers(0, 59))


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """A context in which a reader that waits for ever is woken. Raises Fault when one was."""
    woken = []

    def wake(*_: object) -> None:
        woken.append(True)
        raise TimeoutError("woken")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if woken:
            raise Fault("it would have waited for ever")


def check(case: Case, files: Kept) -> str:
    """Read files that lead away. Returns what came of it."""
    place, path, number = case
    away = _away()
    with files.watched(CHANGED), without_work():
        before = {file: file.read_bytes() for file in away.iterdir()}
        with ending():
            outcome = PLACES[place](path.format(away=away), number)
        after = {file: file.read_bytes() for file in away.iterdir()}
        if after != before:
            raise Fault(f"{case}: what is outside was changed")
        for file in [*Path().glob("*.html"), *Path("out").glob("*")]:
            if file.is_file() and any(one in file.read_bytes() for one in (SECRET, b"<img")):
                raise Fault(f"{case}: {file} shows what is outside")
    return "refused" if outcome.status else "taken"
