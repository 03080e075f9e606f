"""The method of a run: its options, its plan and its rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatsparse.common.plugins import errors_of
from flatsparse.experiments.run.config import ResolvedPruning, ResolvedRun, change
from flatsparse.methods import METHODS, kind_of, named, options_of, traits_of
from flatsparse.sparse.distributions import DISTRIBUTIONS
from flatsparse.sparse.plan import Plan, due_steps

# Options that a run takes from its method when it is resolved, and what methods did before they had them.
FILLED_IN = {"explore": "removable", "first_phase": "net", "last_phase": "layer", "channel_offset": 0.0}
OPTIONS = ("channels", *FILLED_IN, "distribution", "every", "until", "drop_fraction", "penalty", "pattern", "rewind")
AMPLE = 10**6  # steps: no method finds such a run too short
UPDATES = 10  # the least number of mask updates of a run


def removal(pruning: ResolvedPruning) -> str:
    """Return the part that a method removes, as a phrase."""
    if not traits_of(kind_of(pruning.method)).takes_sparsity:
        return f"{pruning.channels:.0%} of its channels removed"
    return f"{pruning.sparsity:.0%} of its weights zero"


def plan_of(run: ResolvedRun) -> Plan:
    """Return the plan of a run's method before the length of the run is known; its rounds do not depend on that.

    Raises: InputError for options that the method refuses, and when its own code does not run.
    """
    pruning = run.pruning
    own = options_of(kind_of(pruning.method))
    chosen = {name: value for name in OPTIONS if name in own and (value := getattr(pruning, name)) is not None}
    with contextlib.ExitStack() as stack:
        if ".py:" in pruning.method:
            stack.enter_context(errors_of(Path(pruning.method.rpartition(":")[0])))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # they are of this length, and the plan of the true one has its own
        return named(pruning.method, chosen).plan(pruning.sparsity, max(AMPLE, pruning.rewind or 0))


def rounds_of(run: ResolvedRun) -> int:
    """Return the number of rounds of training."""
    rounds = plan_of(run).rounds
    return rounds.count if rounds else 1


def before_there_was_a_choice(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the behaviour of the method under recorded settings for options that are newer than they are, by name."""
    kind = METHODS.get(str(settings.get("method")))
    options = () if kind is None else options_of(kind)
    return {name: value for name, value in FILLED_IN.items() if name not in settings and name in options}


def with_method_options(run: ResolvedRun, steps: int) -> tuple[ResolvedRun, dict[str, Any]]:
    """Return a run with its method's own options where it has none, and those options by name.

    A period is shortened so that there are ten updates, but not below two steps: an update can take the place of the
    weight step, and then some must be left. Longer training keeps the period: the steps are those without a multiplier.
    """
    pruning = run.pruning
    method: Any = kind_of(pruning.method)()
    own = {name: getattr(method, name) for name in OPTIONS if name in options_of(method)}
    if pruning.until is not None and "until" in own:
        method = dataclasses.replace(method, until=pruning.until)
    if own.get("every") is not None:
        every = min(own["every"], round(getattr(method, "until", 1.0) * steps) // UPDATES)
        while every > 2 and _updates(method, every, pruning.sparsity, steps) < UPDATES:  # the period may lengthen later
            every -= 1
        own["every"] = max(2, every)
    if "distribution" in own:
        names = {distribution: name for name, distribution in DISTRIBUTIONS.items()}
        if own["distribution"] in names:
            own["distribution"] = names[own["distribution"]]
        else:  # a method's own, which it brings with it
            del own["distribution"]
    given = {name: value for name in OPTIONS if (value := getattr(pruning, name)) is not None}
    return change(run, **{**own, **given}), {**own, **given, **({"sums": True} if pruning.sums else {})}


def _updates(method: Any, every: int, sparsity: float, steps: int) -> int:
    """Return the number of mask updates that a method has with a period."""
    plan = dataclasses.replace(method, every=every).plan(sparsity, steps)
    rules = plan.rules if plan.pull is None else (*plan.rules, plan.pull.projection)
    return due_steps(rules, last=steps).count(0, steps)
