"""Changes by name, such as int4, prune30 and noise0.2, and finished runs after them."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.experiments.evaluate.fine_tuning import EPOCHS, elsewhere_and_back
from flatsparse.experiments.run.load import Finished
from flatsparse.measure.changes import add_noise, prune_active, round_weights

AS_TRAINED, FINE_TUNED, BACK, DYNAMIC = "as trained", "finetune", "back", "int8-dynamic"
DRAWS = 3  # of noise, whose scores are averaged
FORMS = "int2 … int16, int8-dynamic, prune1 … prune99 (percent), noise0.2 (of a layer's spread), finetune or finetune10 (epochs)"


@dataclass(frozen=True)
class Change:
    """A change of a trained network.

    Attributes:
        kind: int, prune, noise, finetune or int8-dynamic.
        amount: bits, a fraction of the active weights, the noise in units of their standard deviation, or epochs.
        name: as it was asked for.
    """

    kind: str
    amount: float
    name: str

    @classmethod
    def named(cls, name: str) -> Change:
        """Return the change of a name.

        >>> Change.named("prune30")
        Change(kind='prune', amount=0.3, name='prune30')

        Raises: InputError for a name that none has.
        """
        if name == DYNAMIC:
            return cls(name, 8, name)
        if name == FINE_TUNED:
            return cls(name, EPOCHS, name)
        found = re.fullmatch(r"(int|prune|noise|finetune)(\d+(?:\.\d+)?)", name)
        if found is not None:
            kind, amount = found[1], float(found[2])
            if kind == "int" and amount.is_integer() and 2 <= amount <= 16:
                return cls(kind, amount, name)
            if kind == "prune" and 0 < amount < 100:
                return cls(kind, amount / 100, name)
            if kind == FINE_TUNED and amount.is_integer() and amount > 0:
                return cls(kind, amount, name)
            if kind == "noise" and amount > 0:
                return cls(kind, amount, name)
        raise InputError(f"--after got '{name}': wanted one of {FORMS}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what is measured: fine-tuning elsewhere has a way back."""
        return (self.name, f"{self.name} {BACK}") if self.kind == FINE_TUNED else (self.name,)


UNCHANGED = Change("none", 0.0, AS_TRAINED)


def changed(run: Finished, change: Change) -> Iterator[tuple[str, nn.Module]]:
    """Yield changed copies of a run's network, each with the name of what it is; several of one name are draws of it."""
    if change.kind == FINE_TUNED:
        yield from zip(change.parts, elsewhere_and_back(run, int(change.amount)), strict=True)
        return
    for draw in range(DRAWS if change.kind == "noise" else 1):
        model = copy.deepcopy(run.model)
        if change.kind == "int":
            round_weights(model, int(change.amount))
        elif change.kind == DYNAMIC:
            model = _dynamic(model)
        elif change.kind == "prune":
            prune_active(model, run.masks, change.amount)
        elif change.kind == "noise":
            add_noise(model, run.masks, change.amount, generator(run.run.seed, "noise", draw))
        yield change.name, model


def _dynamic(model: nn.Module) -> nn.Module:
    """Return a network whose linear layers are torch's own dynamically quantized ones: 8 bits, activations too; on CPUs."""
    if not hasattr(torch.ao, "quantization"):
        raise InputError(f"--after {DYNAMIC}: torch {torch.__version__} has no dynamic quantization: give int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces its removal
        return torch.ao.quantization.quantize_dynamic(model.cpu(), {nn.Linear}, dtype=torch.qint8)
