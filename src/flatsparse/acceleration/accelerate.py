"""``accelerate``: let the layers of a sparse model compute sparse, where that is faster."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable

from torch import nn

from flatsparse.acceleration import network
from flatsparse.acceleration.layers import SparseLayer
from flatsparse.acceleration.modules import SAVED_AS, Conv2d, Linear, Weighted, accelerate_module
from flatsparse.common.errors import InputError
from flatsparse.sparse.layers import prunable
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.state import ZERO
from flatsparse.sparse.training import SparseTraining


class Accelerated:
    """A model whose sparse layers compute sparse where that is faster. See ``accelerate``."""

    def __init__(self, training: SparseTraining) -> None:
        self._training = training
        self._layers: dict[str, SparseLayer | str] = {}
        self._network: network.AcceleratedNetwork | None = None
        self._undo: list[Callable[[], None]] = []
        self._said: set[str] = set()
        self._asked: tuple[int, bool] | None = None  # a step, and whether it needs dense gradients

    @property
    def layers(self) -> dict[str, str]:
        """What each masked weight's layer did when it was last called: "sparse", or "dense: " and why."""
        return {name: self._does(name) for name in self._layers}

    def _does(self, name: str) -> str:
        layer = self._layers[name]
        if self._network is not None and name in self._network.does:
            return self._network.does[name]
        return layer if isinstance(layer, str) else layer.does

    def restore(self) -> None:
        """Let all layers compute densely again, as if they had never been accelerated."""
        while self._undo:
            self._undo.pop()()
        self._layers = dict.fromkeys(self._layers, "dense: it was restored")

    def leave_dense(self, reason: str) -> None:
        """Accelerate no layer, and note why."""
        self._layers = {w.name: f"dense: {reason}" for w in self._training.masked_weights}

    def wants_dense_gradients(self) -> bool:
        """Return whether the coming optimizer step reads gradients of masked weights."""
        training, step = self._training, self._training.steps_taken + 1
        if self._asked is None or self._asked[0] != step:
            rules = training.due(step)
            self._asked = step, training.plan.momentum is not None or any(rule.dense_gradient for rule in rules)
        return self._asked[1]

    def say(self, reason: str) -> None:
        """Warn, once for each reason, that layers run densely."""
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(f"accelerated layers run densely for now: {reason}", stacklevel=6)

    def pack(self, model: nn.Module) -> None:
        """Pack the weights of layers that run sparse, but for those that more than their layer reads."""
        every = Counter(id(p) for module in model.modules() for p in module._parameters.values())
        # It reads its layers' weights itself where it evaluates in one call.
        whole = [m.parameters() for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
        kept = {id(p) for p in itertools.chain(*whole)}

        modules = {id(module._parameters.get("weight")): module for module in model.modules()}
        for w in self._training.masked_weights:
            if type(module := modules.get(id(w.weight))) is nn.Conv2d:
                self._undo.append(accelerate_module(module, Conv2d, Weighted(w, self._training.unpack)))

        def wanted(w: MaskedWeight) -> bool:
            return self._does(w.name) == "sparse" and every[id(w.weight)] == 1 and id(w.weight) not in kept

        self._undo.append(self._training.pack_weights(wanted))

    def add_network(self, model: nn.Module, is_active: Callable[[], bool]) -> None:
        """Accelerate the convolutions of a model, with what lies between them."""
        masked = list(self._training.masked_weights)
        self._network = network.accelerate_network(model, masked, self.wants_dense_gradients, is_active)
        self._undo.append(self._network.restore)

    def add(self, w: MaskedWeight, module: nn.Module) -> None:
        """Accelerate a layer, or note why not."""
        if w.name.rpartition(".")[2] == "weight" and type(module) is nn.Linear:
            layer = SparseLayer(w, self.wants_dense_gradients, self._training.keeps_masks, self.say)
            self._undo.append(accelerate_module(module, Linear, Weighted(w, self._training.unpack, layer.linear)))
            self._layers[w.name] = layer
        else:
            self._layers[w.name] = f"dense: {type(module).__name__} has no sparse form here"


def accelerate(model: nn.Module, training: SparseTraining, *, packed: bool = True) -> Accelerated:
    """Let the layers of a sparse model compute sparse, on CPUs, where that is faster.

    Results agree with those of the masked model to rounding, and so does all that is saved; copies and pickles are plain models.
    A layer's forward runs over its live weights, and its backward gives the gradient of these alone, but on steps whose
    rules score masked weights: call ``training.mask_gradients()`` before their norm is clipped. Between such steps the weights
    of these layers are packed: parameter, gradient and the optimizer's state hold the live entries alone, in
    row-major order (``training.unpack()`` lets them have their shapes until the next step). Whether a linear layer is
    faster sparse is measured for some milliseconds when its kind is first called. Convolutions run sparse where several
    follow one another, with batch norms, ReLUs and additions between them, in a model that ``torch.fx`` can trace. Other
    devices, autocast, ``torch.compile`` and function transforms run densely.

    Args:
        model: that ``sparsify`` was called with.
        training: what it gave.
        packed: pack weights, for optimizers that treat every entry by itself (SGD, Adam and kin, S²-SAM and SAM around them).
            Without it parameters keep their shapes, as a moving average over steps needs, and more memory and time.

    Returns: an object with ``layers``, which says what each layer does, and ``restore()``.
    Raises: InputError when the training is of another model, or the model is accelerated already.

    >>> import flatsparse as fs, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 10))
    >>> training = fs.sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), "static", sparsity=0.9, steps=100)
    >>> accelerated = fs.accelerate(model, training)
    >>> model(torch.zeros(1, 20)).shape, list(accelerated.layers)
    (torch.Size([1, 10]), ['0.weight'])
    >>> accelerated.restore()
    """
    if not isinstance(model, nn.Module) or not isinstance(training, SparseTraining):
        raise InputError(
            f"accelerate got {type(model).__name__} and {type(training).__name__}: give the model, then what sparsify gave"
        )
    owners = {id(p): module for p, module in prunable(model).values()}
    masked = training.masked_weights
    if strange := [w.name for w in masked if id(w.weight) not in owners]:
        raise InputError(
            f"the training masks '{strange[0]}', which is no weight of this model: give the model it is of"
        )
    if any(not {SAVED_AS, network.SAVED_AS}.isdisjoint(module.__dict__) for module in model.modules()):
        raise InputError("this model is accelerated already: call restore() on what accelerate gave before")
    accelerated = Accelerated(training)
    if training.outside != ZERO:
        accelerated.leave_dense("the weights outside its mask are not zero (outside='frozen')")
        return accelerated
    for w in masked:
        accelerated.add(w, owners[id(w.weight)])
    if any(type(owners[id(w.weight)]) is nn.Conv2d for w in masked):
        accelerated.add_network(model, training.keeps_masks)
    if packed:
        accelerated.pack(model)
    return accelerated
