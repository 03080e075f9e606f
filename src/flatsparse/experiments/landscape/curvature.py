"""Curvature at the weights of a finished run, and the directional loss increases around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flatsparse.common.seeds import generator
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.run.load import Finished
from flatsparse.measure import directions
from flatsparse.measure.hessian import Hessian
from flatsparse.measure.spectral import extremes, spectrum

STARTS, STEPS = 1, 24  # of the spectral density; one start is enough where weights are many (Ghorbani et al. 2019)
_ENDS = {"weights": int, **dict.fromkeys(("largest", "smallest", "trace", "trace_half"), float)}
FORM: dict[str, Any] = {
    "hessian": {"images": int, "all": _ENDS, "live": _ENDS, "spectrum": {"nodes": [float], "weights": [float]}},
    "around": {
        "images": int,
        **dict.fromkeys(("rho", "cosine"), float),
        "gain": dict.fromkeys(("worst", "sam", "previous", "random"), float),
    },
}
PRODUCTS = 62 + STARTS * STEPS  # with the Hessian, about: the ends of the spectrum settle when they do


def curvature(run: Finished, images: int, seed: int) -> dict[str, Any]:
    """``{"hessian": …, "around": …}``: the ends, trace and density of the spectrum, and the gains of directions.

    Args:
        images: the first training images, without augmentation, labels as trained on.
        seed: of what is drawn.
    """
    chosen = run.task.splits.train.first(images)
    count = len(chosen)
    chunks = list(chosen.batches(chosen.at_once(32)))  # larger ones leave the caches

    def terms() -> Iterator[Tensor]:
        return run.task.terms(run.model, chunks, count)

    run.model.eval()
    ends = extremes(run.model, terms, run.masks, seed=seed)
    density = spectrum(Hessian(run.model, terms, run.masks), STARTS, STEPS, seed)
    points = {"nodes": density.nodes.tolist(), "weights": density.weights.tolist()}
    rho = run.run.rho if run.run.sharpness != "none" and run.run.rho > 0 else directions.RHO
    batches = _whole_batches(run)
    statistics = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    run.model.train()
    gained = directions.mean_increases(
        run.model, [b.content for b in batches], run.task.loss, run.masks, rho, generator(seed, "around")
    )
    run.model.eval()
    with torch.no_grad():
        for name, buffer in run.model.named_buffers():
            buffer.copy_(statistics[name])
    return {
        "hessian": {"images": count, **ends, "spectrum": points},
        "around": {"images": sum(batch.samples for batch in batches), "rho": rho, **gained},
    }


def _whole_batches(run: Finished) -> list[Batch]:
    """Return training batches of the run's size, and at least two: one's gradient is the next one's previous."""
    train = run.task.splits.train
    size = min(run.run.optim.part_size, max(1, len(train) // 2))
    count = max(2, directions.IMAGES // size) * size
    return list(train.first(min(count, len(train) // size * size)).batches(size))
