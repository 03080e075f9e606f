"""Pages from templates: each is one HTML file that holds its styles, scripts and pictures, and needs no network."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flatsparse.common.files import write_atomic
from flatsparse.experiments import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE = "flatsparse.experiments.report"


def asset(name: str) -> Markup:
    """The text of a style sheet or a script of ours, to put into a page as it is."""
    return Markup((resources.files(PACKAGE) / "assets" / name).read_text(encoding="utf-8"))


def svg(figure: Figure) -> Markup:
    """The picture as SVG, to put into a page as it is."""
    return Markup(plotting.svg(figure))


@functools.cache
def _environment() -> Environment:
    """All that is put into a template is escaped, but for pictures and assets; JSON is safe within a script."""
    environment = Environment(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(asset=asset, svg=svg)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    return environment


def write(file: Path, template: str, **values: Any) -> Path:
    """Render a template into a file, which appears whole. Returns the file.

    Raises: InputError when it cannot be written.
    """
    page = _environment().get_template(template).render(values)
    write_atomic(file, page.encode(errors="replace"))  # a path may be no text
    return file
