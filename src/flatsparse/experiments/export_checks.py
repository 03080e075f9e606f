"""What an exported form of a run says, to compare it with the run: its outputs and its score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.split import Batches, Split
from flatsparse.experiments.run.load import Finished

Runs = Callable[..., Any]  # of inputs, the outputs


@torch.no_grad()
def all_outputs(runs: Runs, run: Finished, test: Split) -> Tensor:
    """Return all numbers that a form gives for samples, in float32."""
    outputs = []
    for batch in test.batches(100):
        args, kwargs = run.task.inputs(run.model, batch.content)
        outputs += [
            leaf.float().flatten() for leaf in pytree.tree_leaves(runs(*args, **kwargs)) if isinstance(leaf, Tensor)
        ]
    return torch.cat(outputs)


def difference_of(outputs: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of outputs, as a share of the largest that is wanted."""
    return float((outputs - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def score(runs: Runs, run: Finished, test: Split) -> dict[str, Any]:
    """Return the accuracy in percent, or the scores of a task."""
    model = runs if isinstance(runs, nn.Module) else _Module(runs)
    scores = run.task.evaluate(model.eval(), Batches(test, 100), len(test)).scores
    return {"scores": scores} if run.result.scored else {"accuracy": scores["accuracy"]}


def one_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Tensor:
    """Return the only argument of a network. Raises InputError when it takes more, for the format of a name."""
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        raise InputError(f"format '{name}' is for a model of one tensor, and this one takes more: leave it out")
    return args[0]


class _Module(nn.Module):
    """A function as a module."""

    def __init__(self, function: Runs) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)
