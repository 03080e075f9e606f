"""The cost of a net in floating-point operations, layer by layer, given its masks. A multiply-add counts as 2.

The accounting of Evci et al. (2020, app. H): convolutions and matrix products only, a backward pass costs two forward
passes, and choosing masks costs nothing but the dense gradients that it reads. Which it reads is declared by scores,
rules and plans, so that a new method is counted right without a line here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flatsparse.common.errors import InputError
from flatsparse.common.tensors import span
from flatsparse.sparse.layers import by_default, prunable
from flatsparse.sparse.rules import Rule


@dataclass(frozen=True)
class Cost:
    """The operations of one sample's forward pass in the dense net.

    Attributes:
        layers: of every matrix by its name; 0 for one that no product reads, such as an embedding's.
        other: products that read no matrix of the model, or several, such as those of attention.
    """

    layers: Mapping[str, int]
    other: int

    @property
    def dense(self) -> int:
        """The forward pass of the dense net."""
        return sum(self.layers.values()) + self.other

    def forward(self, masks: Mapping[str, Tensor]) -> float:
        """Return the operations of a forward pass in which each layer uses its active weights alone; others are dense."""
        return self.at({name: float(mask.float().mean()) for name, mask in masks.items()})

    def at(self, density: Mapping[str, float]) -> float:
        """Return the operations of a forward pass with a share of active weights in each layer; others are dense."""
        if strange := [name for name in density if name not in self.layers]:
            raise InputError(
                f"layer '{strange[0]}' is none of the net whose operations were counted: give masks of that net"
            )
        return sum(flops * density.get(name, 1.0) for name, flops in self.layers.items()) + self.other


def cost(model: nn.Module, sample: Tensor, *, elementwise: bool = False) -> Cost:
    """Count the operations of a forward pass, product by product, with the formulas of torch's own counter.

    A product belongs to the matrix that it reads: each of a recurrent or attention layer has its own, and a shared one
    all of its products. Attention's fused kernels count like the two products that they stand for, whatever the
    device. A warning names what cannot be counted.

    Args:
        model: the network; it is run once, in evaluation mode and without gradients.
        sample: one input with its batch dimension, which is divided out.
        elementwise: count batch norms and ReLUs too, as one operation an output each (a batch norm folded into the
            convolution before it leaves a shift). The paper's text leaves them out, but RigL's published ratios are
            met to two digits only with them.

    >>> cost(nn.Sequential(nn.Linear(20, 10)), torch.ones(1, 20)).layers
    {'0.weight': 400}
    """
    return cost_of(model, lambda: model(sample), len(sample), elementwise=elementwise)


def cost_of(model: nn.Module, forward: Callable[[], object], samples: int, *, elementwise: bool = False) -> Cost:
    """Count the operations of any computation with a model, such as its loss; see ``cost``.

    Args:
        model: in evaluation mode while it is counted.
        forward: computes with the model, once.
        samples: the number of them, which is divided out.
    """
    modes = {module: module.training for module in model.modules()}
    matrices = prunable(model)
    counter = _Counter(model, _ELEMENTWISE if elementwise else {})
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operation that no formula is for
    try:
        with torch.no_grad(), counter:
            model.eval()
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training
    layers = {name: count // samples for name, count in counter.layers.items()}
    warn_of_uncounted(name for name, (_, module) in matrices.items() if not layers[name] and by_default(name, module))
    if counter.unknown:
        warnings.warn(
            f"the operations of {', '.join(sorted(counter.unknown))} are not counted, because no formula is known for them",
            stacklevel=3,
        )
    return Cost(layers, other=counter.other // samples)


def share(part: float, whole: float) -> float:
    """Return operations as a share of others; 1 where none are counted, as of a network whose products no formula is for."""
    return part / whole if whole else 1.0


def warn_of_uncounted(unread: Iterable[str]) -> None:
    if names := list(unread):
        warnings.warn(
            f"no product that can be counted reads {', '.join(names)} in a forward pass: their operations count as 0",
            stacklevel=3,
        )


class _Counter(TorchDispatchMode):
    """Counts products as they run, each for the one matrix of the model that it reads.

    Attributes:
        layers: operations by the name of the matrix.
        other: those of products that read none or several, unless one alone is made sparse by default.
        unknown: foreign operations, which no formula is for.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, more: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()
        matrices = prunable(model)
        self.layers = dict.fromkeys(matrices, 0)
        self.other = 0
        self.unknown: set[str] = set()
        self._formulas = {**flop_registry, **_PRODUCTS, **more}
        self._matrices: dict[str, Tensor] = {name: p for name, (p, _) in matrices.items()}
        self._defaults = {name for name, (_, module) in matrices.items() if by_default(name, module)}
        # Memory that holds matrices or is computed from them alone (cast, normalized, masked), with the bytes from where
        # to where and whose they are. The tensors are kept, so that no address is used twice.
        self._known: dict[int, list[tuple[int, int, str | None, Tensor]]] = {}
        for name, p in self._matrices.items():
            self._know(p, name)
        for vector in (*model.parameters(), *model.buffers()):
            self._know(vector, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            out = func(*args, **kwargs)
            self._count(func, str(func), out, args, kwargs, [])
            return out
        packet = func._overloadpacket
        if packet not in self._formulas and func is not torch.ops.prim.device.default:
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        out = func(*args, **kwargs)
        read = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        sources = [self._find(t) for t in read]
        names = list(dict.fromkeys(name for known in sources if known and (name := known[2]) is not None))
        product = packet in self._formulas or packet in _RECURRENT
        self._count(packet, func.namespace, out, args, kwargs, names)
        fixed = all(known is not None for known in sources)  # nothing of it comes from the sample
        for made in pytree.tree_leaves(out):
            if isinstance(made, Tensor) and fixed:
                self._know(made, names[0] if len(names) == 1 and not product else None)
            elif isinstance(made, Tensor):
                self._forget(made)
        return out

    def _count(self, packet: Any, namespace: str, out: Any, args: Any, kwargs: Any, names: Sequence[str]) -> None:
        if packet in _RECURRENT:  # each matrix is read once for each token
            tokens = args[0].numel() // args[0].shape[-1]
            for name in names:
                if self._matrices[name].ndim == 2:  # not a state to start from
                    self.layers[name] += 2 * tokens * self._matrices[name].numel()
        elif packet in self._formulas:
            count = self._formulas[packet](*args, **kwargs, out_val=out)
            if len(names) > 1:  # such as learned queries before a linear layer
                names = [name for name in names if name in self._defaults]
            if len(names) == 1:
                self.layers[names[0]] += count
            else:
                self.other += count
        elif namespace not in ("aten", "prim", "prims"):
            self.unknown.add(str(packet))

    def _find(self, tensor: Tensor) -> tuple[int, int, str | None, Tensor] | None:
        address, start, _ = _place(tensor)
        return next((known for known in self._known.get(address, []) if known[0] <= start < known[1]), None)

    def _know(self, tensor: Tensor, name: str | None) -> None:
        if tensor.numel() and self._find(tensor) is None:  # else it is a part of what is known
            address, start, end = _place(tensor)
            self._known.setdefault(address, []).append((start, end, name, tensor))

    def _forget(self, tensor: Tensor) -> None:
        """The sample was written into this memory, which is therefore no longer known; a matrix always is."""
        address, start, _ = _place(tensor)
        if address in self._known:
            self._known[address] = [k for k in self._known[address] if k[2] is not None or not k[0] <= start < k[1]]


def _place(tensor: Tensor) -> tuple[int, int, int]:
    """The address of a tensor's memory, and the range of bytes of it that the tensor covers."""
    try:
        return tensor.untyped_storage()._cdata, *span(tensor)
    except (RuntimeError, NotImplementedError):  # kinds of tensors without a memory of their own
        return id(tensor), 0, 1


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> int:
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _trilinear(one: Tensor, weight: Tensor, other: Tensor, *args: Any, **options: Any) -> int:
    return 2 * len(one) * weight.numel()  # a multiply-add a weight


def _matrix_vector(*tensors: Tensor, **options: Any) -> int:
    return 2 * tensors[-2].numel()


def _operations(formulas: Mapping[str, Callable[..., int]]) -> dict[Any, Callable[..., int]]:
    """Return formulas by operation, for those of these names that this torch has."""
    return {getattr(torch.ops.aten, name): f for name, f in formulas.items() if hasattr(torch.ops.aten, name)}


# Products that torch's own counter has no formula for.
_PRODUCTS = _operations(
    {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_attention_math_for_mps": _attention,
        "_scaled_dot_product_fused_attention_overrideable": _attention,
        "_trilinear": _trilinear,
        "mv": _matrix_vector,
        "addmv": _matrix_vector,
        "addmv_": _matrix_vector,
        "dot": _matrix_vector,
    }
)
# Whole recurrent layers in one operation, whose first argument is (…, inputs).
_RECURRENT = frozenset(_operations(dict.fromkeys(("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"), _matrix_vector)))


def _one_an_output(*args: Any, out_val: Any, **options: Any) -> int:
    first = out_val if isinstance(out_val, Tensor) else out_val[0]  # a batch norm gives its statistics as well
    return first.numel()


_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm")
_ELEMENTWISE = _operations(dict.fromkeys(("relu", "relu_", *_NORMS), _one_an_output))


def step_flops(forward: float, dense: float, passes: float, due: Iterable[Rule], momentum: bool = False) -> float:
    """Return the operations of a training step on one sample.

    A backward pass costs two forward passes (Evci et al. 2020, app. H).

    Args:
        forward, dense: the forward pass under the masks, and without any.
        passes: gradients taken in the step, 2 for SAM.
        due: the rules that act at this step; one that reads dense gradients makes that part of one backward dense.
        momentum: whether a running average of dense gradients is kept, which makes it dense at every step.
    """
    extra = dense - forward if momentum or any(rule.dense_gradient for rule in due) else 0.0
    return 3 * forward * passes + extra
