"""The task of a network: the class of an image, or the next token at some positions of a sequence.

Outputs are (N, classes) or (N, length, classes), targets int64 (N) or (N, length), where ``IGNORED`` stands for no target.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.samples import DataSet, Samples
from flatsparse.models import MODELS, TOKEN_MODELS

NETWORKS = {**MODELS, **TOKEN_MODELS}


def loss(outputs: Tensor, targets: Tensor, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy over all targets."""
    return F.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), reduction=reduction, label_smoothing=label_smoothing
    )


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the number of right predictions; a class is never ``IGNORED``."""
    return (outputs.argmax(-1) == targets).sum()


def check_fit(model: str, data: DataSet) -> None:
    """Raise InputError for a network that cannot read a data set."""
    if (model in TOKEN_MODELS) != data.pool.are_tokens:
        kind, fitting = ("tokens", TOKEN_MODELS) if data.pool.are_tokens else ("images", MODELS)
        raise InputError(f"--model {model} cannot read the {kind} of '{data.name}': give {' or '.join(fitting)}")


@torch.no_grad()
def check_takes(name: str, model: nn.Module, images: Samples, count: int) -> None:
    """Raise InputError for a network that cannot train on images of this size, or on batches this small.

    Ours, because a network's own errors in a forward pass are in terms of its layers.

    Args:
        name: the model's.
        model: on the CPU; it is left as it is.
        images: those to train on.
        count: images in the smallest batch. Batch norm takes no statistics of a single value.
    """
    blank = torch.cat([images.blank] * min(count, 2))
    with torch.random.fork_rng(devices=[]):
        try:
            copy.deepcopy(model).train()(blank)
        except (ValueError, RuntimeError) as problem:
            if count == 1 and isinstance(problem, ValueError):
                raise InputError(
                    f"the smallest batch has 1 image, of which batch norm in {name} takes no statistics: give another"
                    " --batch-size or --train-size"
                ) from None
            shape = "x".join(map(str, images.shape))
            raise InputError(
                f"--model {name} cannot take images of {shape} ({str(problem).splitlines()[0]}): give another --model, or"
                " larger images"
            ) from None
