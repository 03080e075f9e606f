"""Runs the pages of `docs/notebooks` while the site is built, shows what their blocks print, and offers them as notebooks.

Ours in place of MyST-NB, which runs cells in Jupyter's kernel and brings some thirty packages for it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contents
import torch

BLOCK = re.compile(r"^```python\n(.*?)^```$\n?", re.DOTALL | re.MULTILINE)
PROGRESS = re.compile(r"^(\[\d+/\d+\]|comparing:).*\n", re.MULTILINE)
FOLDER = "notebooks/"


def cells(text: str) -> list[tuple[str, str]]:
    """The parts of a page in order, as ("markdown" or "code", text)."""
    parts = BLOCK.split(text)  # text and code in turns
    return [("code" if number % 2 else "markdown", part) for number, part in enumerate(parts) if part.strip()]


def printed(page: list[tuple[str, str]], file: str) -> list[str]:
    """What each cell prints, run in order in one namespace and in a folder of their own."""
    outputs, names = [], {"__name__": "notebook"}
    with tempfile.TemporaryDirectory() as folder, _alone_in(folder):
        for kind, text in page:
            out = io.StringIO()
            if kind == "code":
                with contextlib.redirect_stdout(out):
                    exec(compile(text, file, "exec"), names)
            outputs.append(PROGRESS.sub("", out.getvalue()).strip("\n"))
    return outputs


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """A context in a folder and on one thread: on tensors so small, more only wait for each other."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def as_page(page: list[tuple[str, str]], outputs: list[str], download: str) -> str:
    """The page with its outputs, and a link to the notebook under its heading."""
    parts = []
    for (kind, text), output in zip(page, outputs, strict=True):
        parts.append(f"```python\n{text}```" if kind == "code" else text)
        if output:
            parts.append(f"```{{code-block}} text\n:class: printed\n\n{output}\n```")
    heading, rest = "\n\n".join(parts).split("\n", 1)
    told = "Outputs are of the building of this site." if any(outputs) else "Outputs are left out here."
    return f'{heading}\n\n<p><a href="{download}" download>Download as a Jupyter notebook</a>. {told}</p>\n{rest}'


def as_notebook(page: list[tuple[str, str]], outputs: list[str], name: str) -> str:
    """The page as a file for Jupyter."""
    made: list[dict[str, Any]] = []
    for number, ((kind, text), output) in enumerate(zip(page, outputs, strict=True)):
        source = text if kind == "code" else contents.with_outside_links(text, name, inside=True)
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.strip("\n")}
        if kind == "code":
            stream = {"output_type": "stream", "name": "stdout", "text": output + "\n"}
            cell |= {"execution_count": None, "outputs": [stream] if output else []}
        made.append(cell)
    language = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": made, "metadata": language, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def read(app: Any, page: str, source: list[str]) -> None:
    if not page.startswith(FOLDER):
        return
    parts = cells(source[0])
    run = app.config.notebooks_run
    outputs = printed(parts, app.env.doc2path(page)) if run else [""] * len(parts)
    name = page.removeprefix(FOLDER)
    source[0] = as_page(parts, outputs, f"{name}.ipynb")
    file = Path(app.outdir) / f"{page}.ipynb"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_notebook(parts, outputs, page), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    app.add_config_value("notebooks_run", True, "env", bool)
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
