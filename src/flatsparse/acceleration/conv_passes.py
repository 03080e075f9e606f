"""Passes around convolutions: sums of gradients, batch norm from sums, changes of layout."""

from __future__ import annotations

from torch import Tensor

from flatsparse.acceleration.conv_kernels import cleared
from flatsparse.acceleration.conv_layout import Layout, empty
from flatsparse.acceleration.conv_structures import Exchange, Norm, NormGradient, Reduction, address, run, strides
from flatsparse.acceleration.kernels import pointer


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
    structure = Reduction(
        layout.blocks, layout.rows, layout.columns, layout.channels, pointer(pooled),
        address(test, test_layout.offset(0, 0)), pointer(with_), pointer(g), pointer(sums),
        strides(layout), strides(test_layout),
    )  # fmt: skip
    run("reduce", structure)


def enter(images: Tensor, layout: Layout) -> Tensor:
    """(N, C, H, W) images, of any strides, in the layout, with a border of zeros."""
    here = cleared(layout)
    run("enter", _exchange(images, here, layout))
    return here


def leave(here: Tensor, layout: Layout) -> Tensor:
    """The (N, C, H, W) images of an activation."""
    images = empty(layout.images, layout.channels, layout.rows, layout.columns)
    run("leave", _exchange(images, here, layout))
    return images


def _exchange(images: Tensor, here: Tensor, layout: Layout) -> Exchange:
    place = address(here, layout.offset(0, 0))
    return Exchange(*images.shape, *images.stride(), pointer(images), place, strides(layout))


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

    The sums are of the inputs less ``less``. Running statistics are updated where there are sums too.
    """
    result = empty(4, layout.channels)
    mean, var = running or (None, None)
    structure = Norm(
        layout.channels, layout.images, layout.images * layout.rows * layout.columns, pointer(sums), pointer(less),
        pointer(weight), pointer(bias), pointer(mean), pointer(var),
        *(address(result, i * layout.channels) for i in range(4)), eps, factor,
    )  # fmt: skip
    run("norm", structure)
    return result


def norm_gradient(layout: Layout, sums: Tensor, normed: Tensor, fixed: bool) -> Tensor:
    """a, b, c, weight's and bias's gradients, (5, channels): the gradient of the input x is a * g + b * x + c.

    Args:
        sums: of g, and of g times x.
        normed: what ``norm`` returned.
        fixed: whether that came from the running statistics.
    """
    result = empty(5, layout.channels)
    count = layout.images * layout.rows * layout.columns
    rows = [address(normed, i * layout.channels) for i in (0, 2, 3)]
    rows += [address(result, i * layout.channels) for i in range(5)]
    run("norm_gradient", NormGradient(layout.channels, layout.images, count, fixed, pointer(sums), *rows))
    return result
