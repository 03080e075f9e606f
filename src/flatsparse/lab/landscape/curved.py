"""Curvature at the weights of a finished run, and what directions gain around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsparse.curvature import Hessian, extremes, spectrum
from flatsparse.lab import around
from flatsparse.lab.data import batches
from flatsparse.lab.finished import Finished
from flatsparse.seeds import generator

STARTS, STEPS = 2, 20  # of the spectral density
PRODUCTS = 62 + STARTS * STEPS  # with the Hessian, about: the ends of the spectrum settle when they do


def look(run: Finished, images: int, seed: int) -> dict[str, Any]:
    """``{"hessian": …, "around": …}``: the ends, trace and density of the spectrum, and the gains of directions.

    Args:
        images: the first training images, without augmentation, labels as trained on.
        seed: of what is drawn.
    """
    count = min(images, len(run.splits.train))
    chosen = run.splits.train.take(torch.arange(count))
    chunks = list(batches(chosen, run.splits, size=125))

    def terms() -> Iterator[Tensor]:
        for inputs, targets in chunks:
            yield F.cross_entropy(run.model(inputs), targets, reduction="sum") / count

    run.model.eval()
    ends = extremes(run.model, terms, run.masks, seed=seed)
    density = spectrum(Hessian(run.model, terms, run.masks), STARTS, STEPS, seed)
    points = {"nodes": density.nodes.tolist(), "weights": density.weights.tolist()}
    rho = run.run.rho if run.run.sharpness != "none" and run.run.rho > 0 else around.RHO
    statistics = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    whole = list(batches(chosen, run.splits, size=min(run.run.batch_size, count)))
    run.model.train()
    gained = around.look_around(run.model, whole, run.masks, rho, generator(seed, "around"))
    run.model.eval()
    with torch.no_grad():
        for name, buffer in run.model.named_buffers():
            buffer.copy_(statistics[name])
    return {
        "hessian": {"images": count, **ends, "spectrum": points},
        "around": {"images": count, "rho": rho, **gained},
    }
