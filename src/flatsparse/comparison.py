"""The comparison of a training function of one's own, from Python. It imports the extra ``lab`` when it is called."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flatsparse.common.errors import InputError
from flatsparse.methods import DEFAULT

if TYPE_CHECKING:
    from flatsparse.experiments.scripts.table import ArmTable


def compare(
    train: Callable[[Any], Mapping[str, float]] | str,
    *,
    seeds: int = 5,
    sharpness: Sequence[str] = ("none", "s2sam", "random"),
    rho: float = 0.05,
    rhos: Mapping[str, float] | None = None,
    method: str = DEFAULT,
    sparsity: float | None = None,
    out: str | os.PathLike[str] = "comparison",
    better: Literal["higher", "lower"] = "higher",
    margin: float | None = None,
    threads: int = 1,
    jobs: int | None = None,
    resume: bool = False,
) -> ArmTable:
    """Run a training function plainly and with sharpness awareness, seed by seed, and report the paired differences.

    Ours, because a gain of one run over another says nothing: every kind of sharpness gets the same seeds, and a random direction
    of the same norm is the control. The same as ``flatsparse compare FILE.py:FUNCTION``, and as resumable.

    Where arms run side by side, each is called in a process of its own, which runs the function's file again. A file that
    calls ``compare`` itself does so under ``if __name__ == "__main__":``, or that call would start anew in every one of them.

    Args:
        train: gets an arm (``arm.seed``, ``arm.name``, ``arm.optimizer(base)``, ``arm.sparsify(model, optimizer, steps=…)``) and
            returns a dict of floats, the first of which is compared. A function at the top of a file, or
            ``"FILE.py:FUNCTION"``; with ``jobs=1`` any function will do.
        seeds: their number.
        sharpness: the kinds to compare; ``"none"`` is always included. ``"sam"`` needs a function that gives a closure to
            ``step``.
        rho, rhos: the radius for all, and for some by name.
        method, sparsity: of ``arm.sparsify``. By default the method's own sparsity, mostly 0.9.
        out: the folder of results, with ``compare.json``, ``compare.png`` and ``report.html``.
        better: whether a higher or a lower number is better.
        margin: a difference that would matter, which is ruled out where the seeds allow.
        threads: that torch computes on in each arm.
        jobs: the number of arms at once. By default one per core, or one on an accelerator or for a function in no file.
        resume: continue the comparison in the folder, of the same function and settings.

    Returns: the table: ``row("s2sam").difference`` (``mean``, ``low``, ``high``, ``n``), ``row(…).verdict``, ``row(…).values``,
        ``over_random``, ``failures``.
    Raises: InputError without the extra, for what cannot be run, and where nothing can be compared.

    >>> import tempfile
    >>> import flatsparse as fs
    >>> table = fs.compare(lambda arm: {"seed": arm.seed}, seeds=2, jobs=1, out=tempfile.mkdtemp())  # doctest: +ELLIPSIS
    [1/6] none-seed0: seed 0...
    >>> table.row("s2sam").gaps
    (0.0, 0.0)
    """
    try:
        comparison = importlib.import_module("flatsparse.experiments.scripts.comparison")
        report = importlib.import_module("flatsparse.experiments.scripts.report")
        script = importlib.import_module("flatsparse.experiments.scripts.script")
        config = importlib.import_module("flatsparse.experiments.run.config")
        terminal = importlib.import_module("flatsparse.experiments.terminal")
    except ModuleNotFoundError as missing:
        raise InputError(f"compare needs '{missing.name}': install it with pip install 'flatsparse[lab]'") from None
    script.check_outermost()
    found = script.script_of(train, in_process=jobs in (None, 1))
    chosen = comparison.ScriptComparison(
        sharpness=tuple(sharpness),
        rho=rho,
        rhos=dict(rhos or {}),
        seeds=seeds,
        better=better,
        margin=margin,
        pruning=config.Pruning(method=method, sparsity=sparsity),
        threads=threads,
        jobs=1 if isinstance(found, script.Function) else jobs,
    )
    table: ArmTable = report.compare_and_report(found, chosen, Path(out), resume=resume, console=terminal.Console())
    return table
