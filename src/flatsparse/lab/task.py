"""What is asked of a network: one class of an image, or the next token at some places of a sequence.

Outputs are (N, classes) or (N, length, classes), targets int64 (N) or (N, length), where ``IGNORED`` asks for nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flatsparse.errors import InputError
from flatsparse.lab.data import DataSet
from flatsparse.models import MODELS, TOKEN_MODELS

NETWORKS = {**MODELS, **TOKEN_MODELS}


def loss(outputs: Tensor, targets: Tensor, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over all that is asked for."""
    return F.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), reduction=reduction, label_smoothing=label_smoothing
    )


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many answers are right; a class is never ``IGNORED``."""
    return (outputs.argmax(-1) == targets).sum()


def check_fit(model: str, data: DataSet) -> None:
    """Raise InputError for a network that cannot read a data set."""
    if (model in TOKEN_MODELS) != data.pool.are_tokens:
        kind, fitting = ("tokens", TOKEN_MODELS) if data.pool.are_tokens else ("images", MODELS)
        raise InputError(f"--model {model} cannot read the {kind} of '{data.name}': give {' or '.join(fitting)}")
