"""Inference in compressed sparse rows: layers that store and multiply their active weights only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.export.dense import contents, with_zeros
from flatsparse.graph.groups import copy_of
from flatsparse.graph.ops import has_hooks, has_plain_tensors
from flatsparse.sparse.import_masks import fitting

CSR_FORMAT = "flatsparse-csr-1"
PARTS = ("crow_indices", "col_indices", "values")


class SparseRows(nn.Module):
    """A matrix in compressed sparse rows and a bias: the base of sparse linear layers and convolutions.

    Attributes:
        crow_indices, col_indices: int32, as ``torch.sparse_csr_tensor`` takes them.
        values: the active weights row by row, including those that happen to be zero; a parameter without gradient.
        bias: (rows,), or none; the same.
        weight: the layer's dense weight, computed at each access.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, rows: int, columns: int, parts: Mapping[str, Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        for name in ("crow_indices", "col_indices"):
            self.register_buffer(name, parts[name])
        # Parameters, as others ask a model's first one for its type and device.
        self.values = nn.Parameter(parts["values"], requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def matrix(self, *, check: bool = False) -> Tensor:
        """The sparse tensor (rows, columns). Raises RuntimeError when ``check`` is set and the indices are invalid."""
        size = self.rows, self.columns
        return torch.sparse_csr_tensor(self.crow_indices, self.col_indices, self.values, size, check_invariants=check)

    def times(self, columns: Tensor) -> Tensor:
        """The matrix times (columns, n), plus the bias: (rows, n)."""
        product = self.matrix() @ columns
        return product if self.bias is None else product + self.bias[:, None]


class CSRLinear(SparseRows):
    """A linear layer. Input (…, in_features), output (…, out_features); nested tensors too."""

    def __init__(self, layer: nn.Linear, parts: Mapping[str, Tensor]) -> None:
        super().__init__(layer.out_features, layer.in_features, parts, layer.bias)
        self.out_features, self.in_features = layer.out_features, layer.in_features

    @property
    def weight(self) -> Tensor:
        return self.matrix().to_dense()

    def forward(self, x: Tensor) -> Tensor:
        if x.is_nested:  # as nn.TransformerEncoder passes on padded inputs
            return torch.nested.as_nested_tensor([self(part) for part in x.unbind()], layout=x.layout)
        outputs = self.times(x.reshape(-1, self.columns).T.contiguous())
        return outputs.T.reshape(*x.shape[:-1], self.rows)


class CSRConv2d(SparseRows):
    """A convolution as one sparse matrix times the unfolded input. Input (N, C, H, W).

    The kernels of a grouped or depthwise convolution are blocks of the matrix, and need no case of their own.
    """

    def __init__(self, layer: nn.Conv2d, parts: Mapping[str, Tensor]) -> None:
        super().__init__(layer.out_channels, layer.in_channels * layer.weight[0, 0].numel(), parts, layer.bias)
        self.out_channels, self.in_channels, self.groups = layer.out_channels, layer.in_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self.pad = layer._reversed_padding_repeated_twice  # what F.pad takes; known for 'same' too
        self.pad_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    @property
    def weight(self) -> Tensor:
        kernels = self.matrix().to_dense().view(self.groups, self.rows // self.groups, self.groups, -1)
        own = kernels.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # each group's block
        return own.reshape(self.rows, -1, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:  # without a batch
            return self(x[None])[0]
        if any(self.pad):
            x = F.pad(x, self.pad, mode=self.pad_mode)
        height, width = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        if max(self.kernel_size) == 1:
            columns = x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        else:
            columns = F.unfold(x, self.kernel_size, dilation=self.dilation, stride=self.stride)
        outputs = self.times(columns.transpose(0, 1).reshape(self.columns, -1))
        return outputs.view(self.rows, len(x), height, width).transpose(0, 1).contiguous()


KINDS: dict[type[nn.Module], type[CSRLinear] | type[CSRConv2d]] = {nn.Linear: CSRLinear, nn.Conv2d: CSRConv2d}


def to_csr(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model for inference whose masked linear layers and 2D convolutions run on ``torch.sparse``.

    Ours, because hardware that skips zeros is rare. Other kinds of masked layers stay dense with zeros, and so do attention,
    which reads its weights itself, and layers with hooks or whose tensors are computed. A sparse layer has a dense
    ``weight`` to read. Its speed depends on sparsity and shape: measure it.

    Args:
        model: the network; it is not changed.
        masks: bool tensors by parameter name, such as ``training.masks``.

    Raises: InputError when the masks are not the model's, and where torch cannot multiply: in half precision on a CPU.

    >>> layer = nn.Linear(4, 2)
    >>> to_csr(layer, {"weight": torch.eye(2, 4).bool()}).values.shape
    torch.Size([2])
    """
    fitted = fitting(masks, model)
    copy = with_zeros(model, masks)
    named = {name: module for name, module in copy.named_modules() if f"{name}.weight".lstrip(".") in fitted}
    plain = {name: m for name, m in named.items() if type(m) in KINDS and has_plain_tensors(m) and not has_hooks(m)}
    return _checked(_replaced(copy, {n: _parts(m, fitted[f"{n}.weight".lstrip(".")]) for n, m in plain.items()}))


def save_csr(file: str | os.PathLike[str], model: nn.Module) -> None:
    """Write the model that ``to_csr`` returned as safetensors; docs/export.md describes the file."""
    save_tensors(Path(file), contents(model), {"format": CSR_FORMAT})


def load_csr(file: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Read a model that ``save_csr`` wrote, given the dense model that it was made of, which is not changed.

    Raises: InputError when the file is corrupt, of another format or of another model.
    """
    tensors, about = load_tensors(Path(file))
    if about.get("format") != CSR_FORMAT:
        raise InputError(f"'{file}' holds '{about.get('format')}', not '{CSR_FORMAT}': give a file that save_csr wrote")
    names = [name.removesuffix("crow_indices").rstrip(".") for name in tensors if name.endswith("crow_indices")]
    try:
        parts = {n: {part: tensors[f"{n}.{part}".lstrip(".")] for part in PARTS} for n in names}
        copy = _replaced(copy_of(model).eval(), parts)
        copy.load_state_dict(tensors)
        for rows in copy.modules():
            if isinstance(rows, SparseRows):  # indices from a stranger's file must not reach beyond the matrix
                rows.matrix(check=True)
    except (KeyError, AttributeError, RuntimeError):
        raise InputError(f"'{file}' is not of this model: give the one that it was made of") from None
    return _checked(copy)


def _parts(layer: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """The three tensors of a layer's matrix (outputs, inputs), or (outputs, channels x kernel) of a convolution."""
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    active = mask.flatten(1).to(layer.weight.device)
    rows, columns = active.nonzero(as_tuple=True)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    columns = columns + rows // (len(active) // groups) * active.shape[1]  # each group reads channels of its own
    crow = F.pad(active.sum(1).cumsum(0), (1, 0))
    values = layer.weight.detach().flatten(1)[active]
    return {"crow_indices": crow.int(), "col_indices": columns.int(), "values": values}


def _replaced(model: nn.Module, parts: Mapping[str, Mapping[str, Tensor]]) -> nn.Module:
    """The model with its named layers replaced by sparse ones."""
    new: dict[nn.Module, nn.Module] = {}
    for name, tensors in parts.items():
        layer = model.get_submodule(name)
        kind = KINDS[type(layer)]
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        moved = {part: tensor.to(layer.weight.device) for part, tensor in tensors.items()}
        moved["values"] = moved["values"].to(layer.weight.dtype)  # as of a state dict that is loaded
        new[layer] = kind(layer, moved)  # type: ignore[arg-type]  # KINDS pairs them
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in new:
                module._modules[name] = new[child]
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # its fast path would read the weights that are gone
    return new.get(model, model)


@torch.no_grad()
def _checked(model: nn.Module) -> nn.Module:
    """The model. Raises InputError when torch lacks the products that its layers need."""
    for rows in model.modules():
        if isinstance(rows, SparseRows):
            try:
                rows.times(rows.values.new_zeros(rows.columns, 1))
            except NotImplementedError:
                raise InputError(
                    f"torch has no product of sparse rows in {rows.values.dtype} on {rows.values.device}: give model.float()"
                ) from None
    return model
