"""The kinds of operations in a traced graph, by their effect on channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

# Element by element, so that channels stay where they are.
_UNARY = (
    "abs", "celu", "clamp", "clip", "elu", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid",
    "mish", "neg", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "sqrt", "square", "tanh",
)  # fmt: skip
_SAME = ("alpha_dropout", "clone", "contiguous", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d")
_JOIN = ("add", "div", "iadd", "imul", "isub", "itruediv", "mul", "sub", "truediv")
_POOLS = tuple(f"{kind}_pool{n}d" for kind in ("adaptive_avg", "adaptive_max", "avg", "max") for n in (1, 2, 3))
_FUNCTIONS = {
    **dict.fromkeys(_UNARY, "unary"),
    **dict.fromkeys(_SAME, "same"),
    **dict.fromkeys(_JOIN, "join"),
    **dict.fromkeys(_POOLS, "pool"),
    **dict.fromkeys(("cat", "concat"), "cat"),
    **{name: name for name in ("flatten", "mean")},
}
_MODULES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv"),
    nn.Linear: "linear",
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), "norm"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), "same"),
    **dict.fromkeys(
        (nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish), "unary"
    ),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh), "unary"),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "pool"),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "pool"),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), "pool"),
    nn.Flatten: "flatten",
}


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """The kind of a node: conv, linear, norm, unary, same, join, pool, mean, flatten, cat or size.

    None for unknown operations, and for a known one with arguments that make it another.
    """
    if node.op == "call_module":
        module: Any = modules[str(node.target)]
        kind = _MODULES.get(type(module))  # exactly: a subclass may do anything
        plain = kind != "flatten" or (module.start_dim, module.end_dim) == (1, -1)
        plain = plain and (kind not in ("conv", "linear", "norm") or has_plain_tensors(module))
        return kind if plain and len(node.all_input_nodes) == 1 else None
    if _is_size(node):
        return "size"
    if node.op == "call_method" and str(node.target) in ("view", "reshape"):
        return "flatten" if _keeps_batch(node, modules) else None
    kind = _FUNCTIONS.get(_name(node))
    if not {"out", "axis", "keepdims"}.isdisjoint(node.kwargs):  # written to another tensor, or NumPy's names
        return None
    if kind == "flatten" and _arguments(node, ("start_dim", "end_dim"), (0, -1)) != [1, -1]:
        return None
    if kind == "join" and not all(isinstance(a, (fx.Node, int, float)) for a in node.args):
        return None
    if kind == "cat" and not isinstance(_concat_argument(node), (list, tuple)):
        return None
    several = kind in ("join", "cat")
    return kind if several or len(node.all_input_nodes) == 1 else None


def is_batch_size(node: object) -> bool:
    """True for a node that is the batch size of a value: ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]``."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size":
        return [*node.args[1:], *node.kwargs.values()] == [0]
    return _name(node) == "getitem" and _is_shape(node.args[0]) and node.args[1:] == (0,)


def mean_dims(node: fx.Node) -> tuple[Sequence[int] | None, bool]:
    """The dimensions of a mean (None: all), and whether it keeps them."""
    dims, keep = _arguments(node, ("dim", "keepdim"), (None, False))
    return ([dims] if isinstance(dims, int) else dims), bool(keep)


def concat_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs of a concatenation, in order and with repetitions."""
    return [source for source in _concat_argument(node) if isinstance(source, fx.Node)]


def as_function(node: fx.Node, modules: Mapping[str, nn.Module]) -> Callable[..., Any]:
    """The computation of a unary node or a join, as a function of its arguments."""
    if node.op == "call_module":
        return modules[str(node.target)]
    if node.op == "call_method":
        return lambda first, *rest, **options: getattr(first, str(node.target))(*rest, **options)
    assert callable(node.target)
    return node.target


def pool_dims(node: fx.Node, modules: Mapping[str, nn.Module]) -> int:
    """The number of dimensions, the last ones, that a pooling layer works on."""
    name = type(modules[str(node.target)]).__name__ if node.op == "call_module" else _name(node)
    return int(name[-2])


def is_active_dropout(node: fx.Node) -> bool:
    """True for a dropout that stays on in evaluation mode, as ``F.dropout`` does without ``training=``."""
    name = _name(node)
    if node.op != "call_function" or "dropout" not in name:
        return False
    _, training = _arguments(node, ("p", "training"), (0.5, name != "alpha_dropout"))
    return training is not False


def shared_modules(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[str]:
    """The modules that hold a parameter or buffer whose memory is used by more than one call."""
    used: list[tuple[str, set[int]]] = []
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            is_module, name = node.op == "call_module", str(node.target)
            module = modules[name if is_module else name.rpartition(".")[0]]
            tensors = (*module.parameters(recurse=is_module), *module.buffers(recurse=is_module))
            used.append((name, {_memory(tensor) for tensor in tensors}))
    uses = Counter(memory for _, own in used for memory in own)
    return {name for name, own in used if any(uses[memory] > 1 for memory in own)}


def _memory(tensor: Tensor) -> int:
    """The address of a tensor, because parameters may be tied through their ``.data`` alone."""
    return tensor.data_ptr() or id(tensor)  # none on the device meta, say


def description(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The called layer or operation, in words."""
    if node.op == "call_module":
        return f"{type(modules[str(node.target)]).__name__} '{node.target}'"
    return f"operation '{node.target if node.op == 'call_method' else getattr(node.target, '__name__', node.target)}'"


def has_plain_tensors(layer: Any) -> bool:
    """True for a layer whose tensors are real and its own, not computed from others (parametrized, pruned by torch)."""
    own = {**layer._parameters, **layer._buffers}
    tensors = [(name, getattr(layer, name, None)) for name in ("weight", "bias", "running_mean", "running_var")]
    return all(t is None or (not t.is_complex() and t is own.get(name)) for name, t in tensors)


def has_hooks(module: nn.Module) -> bool:
    """True for a module whose calls run forward hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _name(node: fx.Node) -> str:
    """The plain name of torch's functions and of methods; empty for functions of others."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    home = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    return getattr(node.target, "__name__", "").rstrip("_") if home in ("torch", "_operator", "builtins") else ""


def _concat_argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("tensors")


def _arguments(node: fx.Node, names: Sequence[str], defaults: Sequence[Any]) -> list[Any]:
    """The arguments after the first, by position or by name."""
    given = node.args[1:]
    return [
        given[index] if index < len(given) else node.kwargs.get(name, default)
        for index, (name, default) in enumerate(zip(names, defaults, strict=True))
    ]


def _is_shape(node: object) -> bool:
    if not isinstance(node, fx.Node):
        return False
    is_size = node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs
    return is_size or (_name(node) == "getattr" and node.args[1] == "shape")


def _is_size(node: fx.Node) -> bool:
    """True for a node that reads only what does not depend on channels: the batch size, device or type."""
    if _is_shape(node):
        return all(is_batch_size(user) for user in node.users)
    return is_batch_size(node) or (_name(node) == "getattr" and node.args[1] in ("device", "dtype"))


def _keeps_batch(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """True for a view to (batch size, -1): a flatten of all but the first dimension."""
    shape: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    if len(shape) != 2 or not is_batch_size(shape[0]) or bool(shape[1] != -1):
        return False
    source, value = shape[0], node.all_input_nodes[0]
    while is_batch_size(source) or _is_shape(source):  # up to the value whose batch size it is
        source = source.args[0]
    while value is not source and kind_of(value, modules) not in (None, "size"):  # all known kinds keep the batch
        value = value.all_input_nodes[0]
    return value is source


def is_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """True for a unary node or a join that writes to its first input."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    flag = node.kwargs.get("inplace", False) or any(argument is True for argument in node.args)
    return bool(flag) or name.endswith("_") or name in ("iadd", "imul", "isub", "itruediv")
