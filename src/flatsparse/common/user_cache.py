"""Where the user's cache is."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """Return our folder in the user's cache, which need not be there yet; None where the user has no home.

    A relative ``XDG_CACHE_HOME`` is passed over, as its specification asks: it would be a folder of whoever owns the current one.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():
        return given / "flatsparse"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" / "flatsparse" if home.is_absolute() and home.is_dir() else None
