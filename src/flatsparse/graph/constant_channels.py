"""Channels that are constant in evaluation mode, and their values: the outputs of channels without active inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from flatsparse.common.weight_layout import inputs_first
from flatsparse.graph.ops import as_function, concat_inputs, is_active_dropout, is_in_place, kind_of
from flatsparse.graph.trace import Part, Trace

UNKNOWN = math.nan  # of a channel that varies, or may


def constant_inputs(trace: Trace, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The constant values of the features that each layer reads, (features,), by the name of its weight; ``UNKNOWN`` where
    they vary.

    Ours: the graph is evaluated on one number per channel. A batch norm turns zeros into ``β - γ·mean/√(var + ε)``; after
    zero padding a constant other than 0 is not constant, because the border differs.

    Args:
        trace: of the model.
        tensors: its parameters and buffers by name, masked.
    """
    outputs: dict[fx.Node, Tensor] = {}  # one number per channel
    storage: dict[fx.Node, fx.Node] = {}  # the first node whose memory a node may share
    inputs: dict[str, Tensor] = {}
    for node in trace.graph.nodes:
        value = trace.values[node]
        if value is None:
            continue
        sources = [outputs[source] for source in node.all_input_nodes if source in outputs]
        kind = kind_of(node, trace.modules)
        if kind in ("conv", "linear"):
            module: Any = trace.modules[str(node.target)]
            features = _features(trace, node, module, sources)
            constant = _layer(module, str(node.target), features, tensors)
            if getattr(module, "groups", 1) == 1:
                inputs[f"{node.target}.weight"] = features
        elif kind == "norm":
            constant = _norm(trace.modules[str(node.target)], str(node.target), sources[0], tensors)
        elif kind == "cat":
            constant = torch.cat([outputs[source] for source in concat_inputs(node)])
        elif kind in ("unary", "join"):
            constant = _elementwise(node, trace.modules, outputs)
        elif kind == "pool":
            constant = _pooled(node, trace.modules, sources[0])
        else:
            constant = torch.full_like(sources[0], UNKNOWN) if is_active_dropout(node) else sources[0]
        in_place = kind in ("unary", "join") and is_in_place(node, trace.modules)
        source = node.all_input_nodes[0]
        storage[node] = storage.get(source, source) if in_place or kind in ("same", "flatten") else node
        if in_place:  # later readers of its input read other values
            for other, first in storage.items():
                if first is storage[node] and other in outputs:
                    outputs[other] = torch.full_like(outputs[other], UNKNOWN)
        kept = torch.cat([_is_kept(part) for part in value.parts])  # perhaps by an operation that writes to it
        outputs[node] = constant.masked_fill(kept, UNKNOWN)
    return inputs


def _is_kept(part: Part) -> Tensor:
    return torch.full((part.channels.size,), part.channels.root().why_kept is not None)


def _features(trace: Trace, node: fx.Node, module: Any, sources: list[Tensor]) -> Tensor:
    """One number for each input feature of a layer; unknown where zero padding, or the gaps of a transposed one, vary it."""
    if not sources:
        count = getattr(module, "in_features", None) or module.in_channels
        return torch.full((count,), UNKNOWN, dtype=torch.float64)
    value = trace.values[node.all_input_nodes[0]]
    assert value is not None
    sizes = [part.channels.size for part in value.parts]
    blocks = [trace.block(part) for part in value.parts]
    spread = [c.repeat_interleave(block) for c, block in zip(sources[0].split(sizes), blocks, strict=True)]
    features = torch.cat(spread)
    padding = getattr(module, "padding", "valid")  # a word, or a number for each dimension
    padded = padding == "same" if isinstance(padding, str) else any(padding)
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or (padded and module.padding_mode == "zeros"):
        features = features.where(features == 0, UNKNOWN)
    return features


def _layer(module: Any, name: str, features: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The constant outputs of a convolution or linear layer, (outputs,)."""
    groups = getattr(module, "groups", 1)
    if groups > 1 and not groups == module.in_channels == module.out_channels:
        return features.new_full((module.out_channels,), UNKNOWN)
    weight = tensors[f"{name}.weight"].transpose(0, 1) if inputs_first(module) == 1 else tensors[f"{name}.weight"]
    weight = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
    kernels, used = weight.double().sum(2).cpu(), weight.ne(0).any(2).cpu()
    if groups > 1:  # depthwise: a row for each channel
        outputs, varies = kernels[:, 0] * features.nan_to_num(), used[:, 0] & features.isnan()
    else:
        outputs, varies = kernels @ features.nan_to_num(), (used & features.isnan()).any(1)
    if (bias := tensors.get(f"{name}.bias")) is not None:
        outputs = outputs + bias.double().cpu()
    return outputs.masked_fill(varies, UNKNOWN)


def _norm(module: Any, name: str, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    mean, var, weight, bias = (
        tensors[f"{name}.{part}"].double().cpu() if getattr(module, part, None) is not None else None
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    if mean is None or var is None or len(mean) != len(inputs):
        return torch.full_like(inputs, UNKNOWN)
    outputs = (inputs - mean) / (var + module.eps).sqrt()
    if weight is not None:
        outputs = torch.where(weight == 0, 0.0, outputs * weight)
    return outputs if bias is None else outputs + bias


def _elementwise(node: fx.Node, modules: Mapping[str, nn.Module], outputs: Mapping[fx.Node, Tensor]) -> Tensor:
    sources = [outputs.get(source) for source in node.all_input_nodes]
    known = [source for source in sources if source is not None]
    unknown = torch.stack([source.isnan() for source in known]).any(0)
    if len(known) < len(sources):
        return torch.full_like(known[0], UNKNOWN)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: outputs[source].clone())
    constant = as_function(node, modules)(*args, **kwargs)
    return constant.masked_fill(unknown | ~constant.isfinite(), UNKNOWN)


def _pooled(node: fx.Node, modules: Mapping[str, nn.Module], inputs: Tensor) -> Tensor:
    """The constant outputs of pooling: its inputs, but not of an average that counts zeros around the border."""
    if node.op == "call_module":
        pool = modules[str(node.target)]
        average = isinstance(pool, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))
        padding = getattr(pool, "padding", 0)
        plain = not (any(padding) if isinstance(padding, tuple) else padding)
        plain = plain and getattr(pool, "divisor_override", None) is None
    else:
        average = getattr(node.target, "__name__", str(node.target)).startswith("avg_pool")
        plain = False  # its arguments may say otherwise
    return inputs.where(inputs == 0, UNKNOWN) if average and not plain else inputs
