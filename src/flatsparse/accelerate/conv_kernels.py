"""The compiled convolution kernels, called on tensors; the argument structures are those of conv.c."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from flatsparse.accelerate.conv_index import ConvGeometry, ConvIndex, Taps
from flatsparse.accelerate.conv_layout import LANES, Layout
from flatsparse.accelerate.kernels import library, pointer, threads

BANDS = 2  # as in conv.c


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("block", "row", "channel", "step")]


_TYPES = {"i": ctypes.c_int64, "p": ctypes.c_void_p, "s": _Strides, "d": ctypes.c_double}


def _structure(name: str, **fields: str) -> Any:
    """A structure whose fields are named by type, in order: i for integers, p for pointers, s for strides, d for doubles."""
    members = [(field, _TYPES[kind[0]]) for kind, names in fields.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": members})


_Convolution = _structure(
    "_Convolution",
    i="blocks rows columns outputs rectify",
    p="starts offsets values start x add mask with_ y sums",
    s="in_ added masked out",
)
_WeightGradient = _structure(
    "_WeightGradient", i="blocks rows columns outputs", p="starts offsets g x gradient sums", s="outer in_"
)
_Combination = _structure(
    "_Combination",
    i="blocks rows columns channels images pad rectify",
    p="x x2 scale scale2 shift y",
    s="in_ in2 out",
)
_Reduction = _structure("_Reduction", i="blocks rows columns channels", p="pooled mask with_ g sums", s="out masked")
_Norm = _structure(
    "_Norm",
    i="channels images count",
    p="sums less weight bias running_mean running_var scale shift mean inverse",
    d="eps factor",
)
_NormGradient = _structure(
    "_NormGradient", i="channels images count fixed", p="sums scale mean inverse a b c weight_gradient bias_gradient"
)
_Exchange = _structure("_Exchange", i="images channels rows columns image channel row column", p="there here", s="in_")


@functools.cache
def _function(name: str, threaded: bool = True) -> Any:
    function = getattr(library(), f"flatsparse_{name}")
    function.argtypes = [ctypes.c_void_p, *([ctypes.c_int] if threaded else [])]
    function.restype = None
    return function


def _run(name: str, structure: Any) -> None:
    _function(name)(ctypes.addressof(structure), threads())


def _strides(layout: Layout, step: int = 1) -> _Strides:
    block, row, channel = layout.strides
    return _Strides(block, row * step, channel, step)


def _at(tensor: Tensor | None, offset: int) -> int | None:
    return None if tensor is None else tensor.data_ptr() + 4 * offset


def new_sums(layout: Layout) -> Tensor:
    """Return zeros for sums over the pixels of an activation, and over those of a product."""
    return torch.zeros(layout.blocks * BANDS, 2, layout.channels, LANES)


def convolve(
    geometry: ConvGeometry,
    taps: Taps,
    values: Tensor,
    x: Tensor,
    y: Tensor,
    start: Tensor | None = None,
    *,
    target: Layout | None = None,
    added: tuple[Tensor, Layout] | None = None,
    rectify: bool = False,
    sums: Tensor | None = None,
) -> None:
    """Convolve x into y, which lies as target (the geometry's output unless given); sums get those of y and its square."""
    source, output = geometry.source, geometry.output
    into = target or output
    add, add_layout = added or (None, output)
    _run(
        "convolve",
        _Convolution(
            output.blocks, output.rows, output.columns, output.channels, rectify,
            pointer(taps.starts), pointer(taps.offsets), pointer(values), pointer(start),
            _at(x, source.offset(-geometry.padding[0], -geometry.padding[1])), _at(add, add_layout.offset(0, 0)), None, None,
            _at(y, into.offset(0, 0)), pointer(sums),
            _strides(source, geometry.stride), _strides(add_layout), _Strides(), _strides(into),
        ),
    )  # fmt: skip


def input_gradient(
    geometry: ConvGeometry,
    index: ConvIndex,
    values: Tensor,
    gradient: Tensor,
    dx: Tensor,
    *,
    add: Tensor | None = None,
    mask: Tensor | None = None,
    with_: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """Write to dx, without a border, the gradient of the input, plus add, where the input (mask) is positive.

    sums get those of dx, and of dx times with_, which lies as dx does.
    """
    source, stride = geometry.source, geometry.stride
    plain = Layout(source.images, source.channels, source.rows, source.columns)
    for (a, b), taps in index.backward.items():
        if a >= source.rows or b >= source.columns:
            continue
        here = plain.offset(a, b)
        rows, columns = (source.rows - 1 - a) // stride + 1, (source.columns - 1 - b) // stride + 1
        own = torch.index_select(values, 0, taps.where)
        step = _strides(plain, stride)
        _run(
            "convolve",
            _Convolution(
                source.blocks, rows, columns, source.channels, False,
                pointer(taps.starts), pointer(taps.offsets), pointer(own), None,
                _at(gradient, geometry.gradient.offset(0, 0)), _at(add, here), _at(mask, source.offset(a, b)),
                _at(with_, here), _at(dx, here), pointer(sums),
                _strides(geometry.gradient), step, _strides(source, stride), step,
            ),
        )  # fmt: skip


def weight_gradient(geometry: ConvGeometry, taps: Taps, gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of the values at the forward's taps."""
    source, output = geometry.source, geometry.output
    result, sums = torch.empty(len(taps.offsets)), torch.empty(len(taps.offsets), LANES)
    _run(
        "weight_gradient",
        _WeightGradient(
            output.blocks, output.rows, output.columns, output.channels,
            pointer(taps.starts), pointer(taps.offsets), _at(gradient, geometry.gradient.offset(0, 0)),
            _at(x, source.offset(-geometry.padding[0], -geometry.padding[1])), pointer(result), pointer(sums),
            _strides(geometry.gradient), _strides(source, geometry.stride),
        ),
    )  # fmt: skip
    return result


def combine(
    target: Layout,
    x: tuple[Tensor, Layout] | None,
    scale: Tensor | None,
    shift: Tensor | None,
    x2: tuple[Tensor, Layout] | None = None,
    scale2: Tensor | None = None,
    *,
    rectify: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """scale * x + scale2 * x2 + shift by channel, rectified where asked, with a border of zeros; the border alone without x."""
    y = target.empty() if out is None else out
    first, layout = x or (None, target)
    second, layout2 = x2 or (None, target)
    _run(
        "combine",
        _Combination(
            target.blocks, target.rows, target.columns, target.channels, target.images, target.pad, rectify,
            _at(first, layout.offset(0, 0)), _at(second, layout2.offset(0, 0)),
            pointer(scale), pointer(scale2), pointer(shift), _at(y, target.offset(0, 0)),
            _strides(layout), _strides(layout2), _strides(target),
        ),
    )  # fmt: skip
    return y


def reduce(
    layout: Layout,
    g: Tensor,
    *,
    pooled: Tensor | None = None,
    mask: tuple[Tensor, Layout] | None = None,
    with_: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """Make g, of a layout without a border, that of ``pooled`` at every pixel, where given, and 0 where mask is not positive.

    sums get those of g, and of g times with_.
    """
    test, test_layout = mask or (None, layout)
    _run(
        "reduce",
        _Reduction(
            layout.blocks, layout.rows, layout.columns, layout.channels, pointer(pooled),
            _at(test, test_layout.offset(0, 0)), pointer(with_), pointer(g), pointer(sums),
            _strides(layout), _strides(test_layout),
        ),
    )  # fmt: skip


def enter(images: Tensor, layout: Layout) -> Tensor:
    """(N, C, H, W) images, of any strides, in the layout, with a border of zeros."""
    here = combine(layout, None, None, None) if layout.pad else layout.empty()
    _exchange("enter", images, here, layout)
    return here


def leave(here: Tensor, layout: Layout) -> Tensor:
    """The (N, C, H, W) images of an activation."""
    images = torch.empty(layout.images, layout.channels, layout.rows, layout.columns)
    _exchange("leave", images, here, layout)
    return images


def _exchange(name: str, images: Tensor, here: Tensor, layout: Layout) -> None:
    _run(
        name,
        _Exchange(
            *images.shape, *images.stride(), images.data_ptr(), _at(here, layout.offset(0, 0)), _strides(layout)
        ),
    )


def norm(
    layout: Layout,
    sums: Tensor | None,
    less: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    factor: float,
) -> Tensor:
    """Scale, shift, mean and 1 / deviation of a batch norm, (4, channels), from sums or, without, the running statistics.

    The sums are of inputs short of the true ones by ``less``. Running statistics are updated where there are sums too.
    """
    result = torch.empty(4, layout.channels)
    mean, var = running or (None, None)
    structure = _Norm(
        layout.channels, layout.images, layout.images * layout.rows * layout.columns, pointer(sums), pointer(less),
        pointer(weight), pointer(bias), pointer(mean), pointer(var), *(_at(result, i * layout.channels) for i in range(4)),
        eps, factor,
    )  # fmt: skip
    _function("norm", threaded=False)(ctypes.addressof(structure))
    return result


def norm_gradient(layout: Layout, sums: Tensor, normed: Tensor, fixed: bool) -> Tensor:
    """a, b, c, weight's and bias's gradients, (5, channels): the gradient of the input x is a * g + b * x + c.

    Args:
        sums: of g, and of g times x.
        normed: what ``norm`` returned.
        fixed: whether that came from the running statistics.
    """
    result = torch.empty(5, layout.channels)
    count = layout.images * layout.rows * layout.columns
    rows = [_at(normed, i * layout.channels) for i in (0, 2, 3)] + [_at(result, i * layout.channels) for i in range(5)]
    structure = _NormGradient(layout.channels, layout.images, count, fixed, pointer(sums), *rows)
    _function("norm_gradient", threaded=False)(ctypes.addressof(structure))
    return result
