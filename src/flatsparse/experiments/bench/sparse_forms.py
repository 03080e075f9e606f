"""The forms in which a layer or a network of a given sparsity can be run: dense, masked, accelerated, small, CSR, and rivals'."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.acceleration.accelerate import Accelerated, accelerate
from flatsparse.acceleration.block_index import OUTPUTS
from flatsparse.api import sparsify
from flatsparse.common.channels_last import unsafe_in_channels_last
from flatsparse.common.tensors import restored
from flatsparse.experiments.bench.channels import without_channels
from flatsparse.experiments.bench.sparse_cases import Kind, SpeedCase
from flatsparse.experiments.bench.sparse_rivals import RIVALS, Missing, converted
from flatsparse.experiments.bench.trainer import FOREVER
from flatsparse.experiments.bench.variants import fused_sgd
from flatsparse.export import to_csr
from flatsparse.export.dense import with_zeros
from flatsparse.graph.shrink import shrink
from flatsparse.methods import FIXED
from flatsparse.sparse.block import Block
from flatsparse.sparse.layers import prunable
from flatsparse.sparse.training import SparseTraining

DENSE, CONTROL, MASKED, ACCELERATED, SMALL, CSR = "dense", "dense again", "masked", "accelerated", "small", "CSR"
BLOCKS = "accelerated, 16×1 blocks"
FORMS = (DENSE, CONTROL, MASKED, ACCELERATED, BLOCKS, SMALL, CSR, *RIVALS)
TRIALS = 3  # steps in each layout; that of the fastest one is chosen, as noise only adds


@dataclass
class Form:
    """A model that is run forward, or trained, on one batch again and again.

    Attributes:
        model, inputs: what is run.
        kind: what is timed: a forward pass without gradients, or a step of training.
        is_layer: whether training is forward and backward alone.
        share: of the weights of the dense form that it has.
        same: whether it computes what the masked model does.
        optimizer: of a network in training; made when it is first needed, unless masks hang on it.
        training: what keeps the masks, where there are any.
        accelerated: what ``accelerate`` returned, where it was called.
    """

    model: nn.Module
    inputs: Tensor
    kind: Kind
    is_layer: bool
    share: float
    same: bool = False
    optimizer: torch.optim.Optimizer | None = None
    training: SparseTraining | None = None
    accelerated: Accelerated | None = None
    _target: Tensor | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Do what is not timed before a step: the mode, and cleared gradients where no optimizer clears them."""
        self.model.train(self.kind == "training")
        if self.kind == "training" and self.is_layer:
            self.inputs.requires_grad_().grad = None
            self.model.zero_grad()
            if self._target is None:
                with torch.no_grad():
                    self._target = torch.ones_like(self.model(self.inputs.detach()))
        elif self.kind == "training" and self.optimizer is None:
            self.optimizer = fused_sgd(self.model)

    def work(self) -> None:
        """Run the batch: what is timed."""
        if self.kind == "inference":
            with torch.no_grad():
                self.model(self.inputs)
        elif self.is_layer:
            self.model(self.inputs).backward(self._target)
        else:
            assert self.optimizer is not None  # prepared
            self.optimizer.zero_grad()
            self.model(self.inputs).square().mean().backward()
            self.optimizer.step()


def forms(
    case: SpeedCase, sparsity: float, kind: Kind, clock: Callable[[], float]
) -> tuple[dict[str, Form], dict[str, str]]:
    """Return the forms of a case that there are for a kind of work, and why others are not there.

    Masks are random, fixed, equally sparse in all layers, and the same for all forms that have any.

    Args:
        case, sparsity, kind: what is to be run.
        clock: by which the faster layout of dense forms is chosen.
    """
    torch.manual_seed(0)
    model, inputs = case.model(), torch.randn(case.inputs)
    dense = _form(copy.deepcopy(model), inputs, case, kind, layout=dense_layout(case, kind, clock))
    masked = _form(copy.deepcopy(dense.model), dense.inputs.clone(), case, kind, share=1 - sparsity, same=True)
    training = _mask(masked, sparsity)
    there = {DENSE: dense, CONTROL: copy.deepcopy(dense), MASKED: masked}
    there[ACCELERATED] = _in_faster_layout(
        functools.partial(_accelerated, model, inputs, case, kind, sparsity), case, clock
    )
    if type(model) is nn.Linear and model.out_features % OUTPUTS == 0:
        there[BLOCKS] = _accelerated(
            model, inputs, case, kind, sparsity, torch.contiguous_format, pattern=Block(OUTPUTS, 1)
        )
    there[SMALL] = _in_faster_layout(functools.partial(_small, case, sparsity, kind), case, clock)
    # In the ordinary layout, the only one of the others.
    zeros = with_zeros(masked.model, training.masks).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    left_out: dict[str, str] = {}
    if kind == "inference":
        there[CSR] = _form(_csr(zeros, training.masks), inputs.clone(), case, kind, share=1 - sparsity, same=True)
    for name in RIVALS:
        try:
            rival = converted(name, zeros, training.masks, inputs, whole=not case.is_layer)
        except Missing as why:
            left_out[name] = str(why)
        else:
            there[name] = _form(rival, inputs.clone(), case, kind, share=1 - sparsity, same=True)
    return there, left_out


def _form(
    model: nn.Module,
    inputs: Tensor,
    case: SpeedCase,
    kind: Kind,
    *,
    layout: torch.memory_format = torch.preserve_format,
    share: float = 1.0,
    same: bool = False,
) -> Form:
    if layout is not torch.preserve_format:
        model, inputs = model.to(memory_format=layout), inputs.clone(memory_format=layout)  # type: ignore[call-overload]
    return Form(model, inputs, kind, case.is_layer, share, same)


def masked_at(
    model: nn.Module, optimizer: torch.optim.Optimizer, sparsity: float, pattern: Block | None = None
) -> SparseTraining:
    """Mask a model, all layers equally, and return what keeps it so.

    Raises: InputError for a sparsity that leaves a layer nothing.
    """
    own: dict[str, Any] = {} if pattern is None else {"pattern": pattern}
    return sparsify(model, optimizer, FIXED, sparsity=sparsity, steps=FOREVER, distribution="uniform", **own)


def _mask(form: Form, sparsity: float, pattern: Block | None = None) -> SparseTraining:
    """Mask a form's model, whose optimizer then keeps the masks."""
    form.optimizer = fused_sgd(form.model)
    form.training = masked_at(form.model, form.optimizer, sparsity, pattern)
    return form.training


def _begin(form: Form) -> None:
    """Take a step that changes nothing: weights are packed from the first step on."""
    assert form.optimizer is not None
    (group,) = form.optimizer.param_groups
    rate, group["lr"] = group["lr"], 0.0
    form.model.train()
    with restored(list(form.model.buffers())):
        form.model(form.inputs).square().mean().backward()
    form.optimizer.step()
    form.optimizer.zero_grad()
    form.optimizer.state.clear()
    group["lr"] = rate


def _accelerated(
    model: nn.Module,
    inputs: Tensor,
    case: SpeedCase,
    kind: Kind,
    sparsity: float,
    layout: torch.memory_format,
    pattern: Block | None = None,
) -> Form:
    form = _form(copy.deepcopy(model), inputs, case, kind, layout=layout, share=1 - sparsity, same=pattern is None)
    form.accelerated = accelerate(form.model, _mask(form, sparsity, pattern))
    _begin(form)
    return form


def _csr(zeros: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    with warnings.catch_warnings():  # that CSR tensors are in beta
        warnings.simplefilter("ignore", UserWarning)
        return to_csr(zeros, masks)


def _small(case: SpeedCase, sparsity: float, kind: Kind, layout: torch.memory_format) -> Form:
    model, shape, share = small_model(case, sparsity)
    return _form(copy.deepcopy(model), torch.randn(shape), case, kind, layout=layout, share=share)


@functools.cache
def small_model(case: SpeedCase, sparsity: float) -> tuple[nn.Module, tuple[int, ...], float]:
    """Return an ordinary dense model of about as many weights as the sparse one has active, its inputs' shape, and its share."""
    torch.manual_seed(0)
    model = case.model()
    if case.narrower is not None:
        narrow, shape = case.narrower(1 - sparsity)
        return narrow, shape, _weights(narrow) / _weights(model)
    masks, share = channels_left(model, 1 - sparsity)
    return shrink(model, masks), case.inputs, share


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p, _ in prunable(model).values())


def channels_left(model: nn.Module, share: float) -> tuple[dict[str, Tensor], float]:
    """Return masks without as many channels of all groups as leave nearest to a share of the weights, and the share that is left.

    Ours, by bisection: what remains falls as more channels go.
    """
    low, high = 0.0, 1.0
    found: list[tuple[float, int, dict[str, Tensor], float]] = []
    for _ in range(10):  # a thousandth of the channels; layers have fewer
        gone = (low + high) / 2
        masks = without_channels(model, gone)
        left = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        found.append((abs(math.log(left / share)), len(found), masks, left))
        low, high = (gone, high) if left > share else (low, gone)
    _, _, masks, left = min(found, key=lambda each: each[:2])
    return masks, left


@functools.cache
def dense_layout(case: SpeedCase, kind: Kind, clock: Callable[[], float]) -> torch.memory_format:
    """Return the layout in which a case's dense form is faster."""
    torch.manual_seed(0)
    model, inputs = case.model(), torch.randn(case.inputs)
    return _faster(lambda layout: _form(copy.deepcopy(model), inputs, case, kind, layout=layout), case, clock)


def _in_faster_layout(make: Callable[[torch.memory_format], Form], case: SpeedCase, clock: Callable[[], float]) -> Form:
    return make(_faster(make, case, clock))


def _faster(
    make: Callable[[torch.memory_format], Form], case: SpeedCase, clock: Callable[[], float]
) -> torch.memory_format:
    def seconds(layout: torch.memory_format) -> float:
        form = make(layout)
        if layout is torch.channels_last and unsafe_in_channels_last(form.model) is not None:
            return math.inf
        return min([timed(form, clock) for _ in range(1 + TRIALS)][1:])

    return case.layouts[0] if len(case.layouts) == 1 else min(case.layouts, key=seconds)


def timed(form: Form, clock: Callable[[], float]) -> float:
    """Run a form once and return the seconds that it took."""
    form.prepare()
    began = clock()
    form.work()
    return clock() - began


def apart(form: Form, masked: Form) -> float:
    """The difference between outputs, and between gradients to inputs, of two forms of one model, relative, by their norms.

    By norms, because rounding moves a few inputs of ReLUs across zero, which changes single gradients by much.
    """
    pairs = zip(_computed(form), _computed(masked), strict=True)
    return max(float((ours - wanted).norm() / wanted.norm().clamp(min=1e-30)) for ours, wanted in pairs)


def _computed(form: Form) -> tuple[Tensor, ...]:
    form.model.eval()
    if form.kind == "inference":
        with torch.no_grad():
            return (form.model(form.inputs),)
    inputs = form.inputs.detach().clone().requires_grad_()
    outputs = form.model(inputs)
    (gradient,) = torch.autograd.grad(outputs, inputs, outputs.detach())
    return outputs.detach(), gradient
