"""Batch norms folded into the convolutions before them, for the many evaluations that a surface takes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from flatsparse.measure.surface import Weights


def folded(model: nn.Module) -> tuple[nn.Module, Callable[[Weights], Weights]]:
    """A network without batch norms after convolutions, and the function that makes its weights from the model's.

    In evaluation mode batch norm is a scale and a shift for each channel, which a convolution can carry (Jacob et al. 2018,
    sec. 3.2). A tenth less time for ResNet-20 on a CPU; outputs are equal up to rounding. A model that cannot be traced
    is returned unchanged.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # whatever a forward does with a proxy
        return model, lambda weights: weights
    modules, pairs = dict(model.named_modules()), []
    for node in list(graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or not norm.affine:
            continue
        before = node.args[0]
        if before.op == "call_module" and type(modules[before.target]) is nn.Conv2d and len(before.users) == 1:
            pairs.append((before.target, node.target, norm))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    if len({conv for conv, _, _ in pairs}) < len(pairs):  # one convolution, called before several norms
        return model, lambda weights: weights
    quick = fx.GraphModule(copy.deepcopy(model), graph)
    for conv, _, _ in pairs:
        layer = quick.get_submodule(conv)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0, 0, 0]))

    def fold(weights: Weights) -> Weights:
        folded_weights = dict(weights)
        for conv, at, norm in pairs:
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            scale = folded_weights.pop(f"{at}.weight") * torch.rsqrt(variance + norm.eps)
            shift = folded_weights.get(f"{conv}.bias", torch.zeros_like(mean)) - mean
            folded_weights[f"{conv}.bias"] = folded_weights.pop(f"{at}.bias") + shift * scale
            folded_weights[f"{conv}.weight"] = folded_weights[f"{conv}.weight"] * _by_filter(scale)
        return folded_weights

    return quick, fold


def _by_filter(scale: Tensor) -> Tensor:
    return scale[:, None, None, None]
