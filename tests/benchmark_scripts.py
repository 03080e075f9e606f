"""The scripts in benchmarks/, imported by the tests of them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks"


@contextmanager
def importable() -> Iterator[None]:
    """Let the scripts be imported by their names; afterwards none of them stays."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "").parent == FOLDER:
                del sys.modules[name]
