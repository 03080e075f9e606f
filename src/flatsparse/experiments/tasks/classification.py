"""Classification: cross-entropy and accuracy of networks that give each sample's class scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.common.errors import InputError, first_line
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.tasks.class_scores import above_chance, confusion, macro
from flatsparse.experiments.tasks.run_task import Evaluation, RunTask

Inputs = tuple[Tensor, Tensor]  # images (N, C, H, W) and labels (N)


@dataclass(frozen=True, kw_only=True)
class Classification(RunTask):
    """Images with a class each.

    Attributes:
        classes: the number of classes.
        blank: one image of zeros (1, C, H, W), on the CPU.
        network: the name of the network, for messages.
        label_smoothing: share of each training label that is spread over all classes; evaluations are without it.
        class_names: by the classes' numbers, where the data name them.
    """

    classes: int
    blank: Tensor
    network: str
    label_smoothing: float = 0.0
    class_names: tuple[str, ...] | None = None
    scored: bool = False

    def loss(self, model: nn.Module, content: Inputs) -> Tensor:
        """Return the mean cross-entropy."""
        return self.train_loss(model, content)[0]

    def train_loss(self, model: nn.Module, content: Inputs) -> tuple[Tensor, Tensor | None]:
        """Return the mean cross-entropy and the number of right predictions."""
        inputs, targets = content
        outputs = model(inputs)
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing), correct(outputs, targets)

    def summed(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the cross-entropy over a batch."""
        inputs, targets = batch.content
        return F.cross_entropy(model(inputs).float(), targets, reduction="sum")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch], count: int, *, detailed: bool = False) -> Evaluation:
        """Return mean cross-entropy and accuracy in percent; as details, macro scores and if accuracy is above chance."""
        right, loss = 0, 0.0
        counts: Tensor | None = None
        for batch in batches:
            inputs, targets = batch.content
            outputs = model(inputs).float()
            right += int(correct(outputs, targets))
            loss += float(F.cross_entropy(outputs, targets, reduction="sum"))
            if detailed:
                pairs = confusion(outputs, targets, self.classes)
                counts = pairs if counts is None else counts + pairs
        details = {} if counts is None else {"macro": macro(counts), "above_chance": above_chance(counts)}
        return Evaluation(loss / count, {"accuracy": 100 * right / count}, details)

    @torch.no_grad()
    def check(self, model: nn.Module, smallest: int) -> None:
        """Raise InputError for a network that cannot train on images of this size, or on batches this small.

        Ours, because a network's own errors in a forward pass are in terms of its layers. Batch norm takes no statistics of
        a single value.
        """
        images = torch.cat([self.blank] * min(smallest, 2))
        with torch.random.fork_rng(devices=[]):
            try:
                outputs = copy.deepcopy(model).train()(images)
            except Exception as problem:  # networks of timm assert what they take
                if smallest == 1 and isinstance(problem, ValueError):
                    raise InputError(
                        f"the smallest batch has 1 image, of which batch norm in {self.network} takes no statistics: give"
                        " another --batch-size, --accumulate or --train-size"
                    ) from None
                channels, height, width = self.blank.shape[1:]
                reason = first_line(problem) or type(problem).__name__
                raise InputError(
                    f"--model {self.network} cannot take images of {height}x{width}x{channels}"
                    f" ({reason}): give another --model, or larger images"
                ) from None
        wanted = (len(images), self.classes)
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(
                f"--model {self.network} gives {got} for {len(images)} images, wanted {wanted}: return a score for each class"
            )

    def sample_forward(self, model: nn.Module) -> tuple[Callable[[], Any], int]:
        """Return a forward pass of one blank image."""
        blank = self.blank.to(next(model.parameters()).device)
        return lambda: model(blank), 1

    def inputs(self, model: nn.Module, content: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the images."""
        return (content[0].contiguous(),), {}

    def scoring(self, batches: Iterator[Batch], *, several: bool) -> dict[str, Any]:
        """Return batches of inputs and targets with the loss of outputs and targets; all of them, for several."""
        pairs = (batch.content for batch in batches)
        return {"batches": pairs if several else [next(pairs)], "loss_fn": F.cross_entropy}


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the number of right predictions."""
    return (outputs.argmax(-1) == targets).sum()
