"""Forms side by side: each once a round, in an order drawn anew, for as many rounds as there is time for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flatsparse.common.seeds import derive
from flatsparse.experiments.bench.results import ratio_json
from flatsparse.experiments.bench.sparse_cases import Kind, SpeedCase
from flatsparse.experiments.bench.sparse_forms import ACCELERATED, DENSE, MASKED, Form, apart, forms, timed
from flatsparse.experiments.bench.sparse_rivals import RIVALS
from flatsparse.experiments.stats import FEWEST, Interval, median

SECONDS = 3.0  # for each case, sparsity and kind of work
WARM_UP = 2  # rounds: the first makes indices, traces and the optimizer's state
MOST = 40  # rounds; more change the interval little
ASLEEP = 0.005  # seconds after which the threads of a library that ran before no longer wait busily for work
AGREES = 1e-3  # relative: forms of one model may differ by rounding, and by no more
MOST_BY_OTHERS = 0.3  # of the processor time: a progress bar has a thread as well


def interleaved(
    runs: Mapping[str, Callable[[], float]], *, rounds: int | None, seconds: float, tell: Callable[[float], None]
) -> dict[str, list[float]]:
    """Return each run's times, round by round.

    Args:
        runs: by name; each runs something once, that ran before, and returns the seconds that it took.
        rounds: the number of recorded rounds; None: as many as fit ``seconds``, but at least six and at most forty.
        seconds: to spend, by the wall.
        tell: called with the share of the work that a round was.
    """
    order, times = random.Random(derive(0, "order")), {name: list[float]() for name in runs}
    began, told = time.perf_counter(), 0.0
    for number in range(1, 1 + (rounds or MOST)):
        for name in order.sample(list(runs), len(runs)):
            times[name].append(runs[name]())
        passed = (time.perf_counter() - began) / seconds
        share = number / rounds if rounds else max(number / MOST, min(passed, number / FEWEST))
        tell(min(share, 1.0) - told)
        told = min(share, 1.0)
        if not rounds and number >= FEWEST and passed >= 1:
            break
    tell(1.0 - told)
    return times


def speeds(times: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    """Return how many times as fast as the dense form each other one is: the medians over rounds of ratios within a round."""
    return {
        name: median([dense / own for dense, own in zip(times[DENSE], each, strict=True)])
        for name, each in times.items()
        if name != DENSE
    }


def measured(
    case: SpeedCase,
    sparsity: float,
    kind: Kind,
    *,
    threads: int,
    rounds: int | None = None,
    seconds: float = SECONDS,
    tell: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Return the record of one kind of work at one sparsity: times, speeds, and what was left out.

    On one thread times are that thread's own, which other programs do not lengthen; on several they are the wall's.

    Args:
        case, sparsity, kind: what is run.
        threads: torch's current number.
        rounds, seconds, tell: as for ``interleaved``.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    there, left_out = forms(case, sparsity, kind, clock)
    accelerated = there[ACCELERATED].accelerated
    left_out |= _wrong(there)  # before any form is trained
    by_others = {name: min(_by_others(form) for _ in range(WARM_UP)) for name, form in there.items()}
    if threads == 1:  # whose time does not see threads that a library has for itself
        threaded = [name for name in RIVALS if by_others.get(name, 0.0) > MOST_BY_OTHERS]
        left_out |= dict.fromkeys(threaded, "it runs on more than one thread")
    there = {name: form for name, form in there.items() if name not in left_out}
    runs = {name: _run(form, clock, threads) for name, form in there.items()}
    times = interleaved(runs, rounds=rounds, seconds=seconds, tell=tell)
    ratios = speeds(times)
    return {
        "sparsity": sparsity,
        "forms": {
            name: {
                "speed": ratio_json(ratios.get(name)),
                "share_of_weights": there[name].share,
                "seconds": [float(f"{value:.5g}") for value in each],
            }
            for name, each in times.items()
        },
        "left_out": left_out,
        "layers": {} if accelerated is None else accelerated.layers,
    }


def _run(form: Form, clock: Callable[[], float], threads: int) -> Callable[[], float]:
    def run() -> float:
        if threads > 1:
            time.sleep(ASLEEP)
            timed(form, clock)  # wakes its own
        return timed(form, clock)

    return run


def _wrong(there: Mapping[str, Form]) -> dict[str, str]:
    """The forms that do not compute what the masked one does, and by how much they are wrong: their times would say nothing."""
    differences = {name: apart(form, there[MASKED]) for name, form in there.items() if form.same}
    return {
        name: f"its results differ from the masked model's by {far:.1g} of their size"
        for name, far in differences.items()
        if far > AGREES
    }


def _by_others(form: Form) -> float:
    """The processor time that other threads take while a form is run, as a share of all."""
    form.prepare()
    own, all_threads = time.thread_time(), time.process_time()
    form.work()
    own, all_threads = time.thread_time() - own, time.process_time() - all_threads
    return 1 - own / max(all_threads, 1e-9)
