"""The convolution kernels against torch's own convolutions in float64."""

import pytest
import torch
import torch.nn.functional as F

from flatsparse.acceleration import conv_kernels, conv_passes, kernels
from flatsparse.acceleration.conv_index import convolution_geometry, convolution_index
from flatsparse.acceleration.conv_kernels import Combined, InputGradient
from flatsparse.acceleration.conv_layout import LANES, Layout
from flatsparse.common.errors import InputError


@pytest.fixture(params=kernels.SETS, autouse=True)
def instructions(request):
    try:
        kernels.use(request.param)
    except InputError:
        pytest.skip(f"no {request.param} here")
    yield request.param
    kernels.use(None)


# images, inputs, outputs, rows, columns, kernel, stride, padding
SHAPES = [
    (16, 3, 5, 8, 8, (3, 3), 1, (1, 1)),
    (5, 4, 6, 9, 7, (3, 3), 2, (1, 1)),
    (33, 2, 3, 6, 11, (1, 1), 1, (0, 0)),
    (17, 4, 4, 7, 8, (1, 1), 2, (0, 0)),
    (3, 2, 3, 5, 6, (5, 3), 2, (2, 0)),
    (2, 3, 2, 11, 10, (3, 3), 3, (2, 1)),
    (1, 1, 1, 4, 4, (2, 2), 2, (0, 0)),
    (2, 2, 2, 3, 3, (4, 4), 1, (3, 3)),
    (2, 2, 2, 2, 1, (1, 1), 4, (0, 0)),
]


def case(images, inputs, outputs, rows, columns, kernel, stride, padding, density=0.4, pad=None):
    torch.manual_seed(0)
    live = torch.rand(outputs, inputs, *kernel) < density
    live[-1] = False  # an output that reads nothing
    weight = torch.randn(outputs, inputs, *kernel) * live
    x = torch.randn(images, inputs, rows, columns)
    source = Layout(images, inputs, rows, columns, max(padding) if pad is None else pad)
    geometry = convolution_geometry(source, outputs, kernel, stride, padding)
    return live, weight, x, geometry


def reference(x, weight, stride, padding):
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    return x, weight, F.conv2d(x, weight, stride=stride, padding=padding)


def close(got, wanted):
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def one(channels):
    return torch.ones(channels), torch.zeros(channels)


def images_of(value, layout):
    """The images of an activation, by torch alone."""
    inner = value[:, layout.pad : layout.pad + layout.rows, :, layout.pad : layout.pad + layout.columns]
    shape = (layout.blocks * LANES, layout.channels, layout.rows, layout.columns)
    return inner.permute(0, 4, 2, 1, 3).reshape(shape)[: layout.images]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [None, 4])
def test_forward_is_torchs(shape, pad):
    live, weight, x, geometry = case(*shape, pad=pad)
    index = convolution_index(live, geometry)
    here = conv_passes.enter(x, geometry.source)
    made = conv_kernels.forward(geometry, index.forward, weight.flatten()[index.forward.where], here, sum_up=True)
    wanted = reference(x, weight, *shape[6:])[2] + made.shift[:, None, None]
    row = wanted[:LANES, :, geometry.output.rows // 2]
    torch.testing.assert_close(row.mean((0, 2)), torch.zeros(len(made.shift)).double(), rtol=0, atol=1e-5)
    close(images_of(made.y, geometry.output), wanted)
    close(conv_passes.leave(made.y, geometry.output), wanted)
    lanes = made.sums.transpose(1, 2).permute(1, 2, 0, 3).flatten(2)[..., : shape[0]].sum(-1)  # those of the batch
    torch.testing.assert_close(lanes[:, 0].double(), wanted.sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(lanes[:, 1].double(), wanted.square().sum((0, 2, 3)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("remade", [False, True])
def test_backward_is_torchs(shape, remade):
    live, weight, x, geometry = case(*shape)
    index, source, output = convolution_index(live, geometry), geometry.source, geometry.output
    plain = Layout(source.images, source.channels, source.rows, source.columns)
    values = weight.flatten()[index.forward.where]
    x64, weight64, y = reference(x, weight, *shape[6:])
    g, before, with_ = torch.randn(y.shape), torch.randn(x.shape), torch.randn(x.shape)
    y.backward(g.double())
    here = conv_passes.enter(x, source)
    if remade:
        here = Combined(source, (conv_passes.enter(x, plain), plain), *one(source.channels))
    inner = Combined(geometry.gradient, (conv_passes.enter(g, output), output), *one(output.channels))
    sums = conv_kernels.new_sums(plain)
    into = InputGradient(plain, conv_passes.enter(before, plain), True, conv_passes.enter(with_, plain), sums)
    weights, dx = conv_kernels.backward(geometry, index, values, inner, here, weights=True, into=into)
    close(weights, weight64.grad.flatten()[index.forward.where])
    wanted = torch.where(x > 0, x64.grad + before, 0)
    close(images_of(dx, plain), wanted)
    total = sums.sum((0, 3))
    torch.testing.assert_close(total[0].double(), wanted.sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(total[1].double(), (wanted * with_).sum((0, 2, 3)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_input_gradient_alone_and_weight_gradient_alone(shape):
    live, weight, x, geometry = case(*shape)
    index, source, output = convolution_index(live, geometry), geometry.source, geometry.output
    plain = Layout(source.images, source.channels, source.rows, source.columns)
    x64, weight64, y = reference(x, weight, *shape[6:])
    g = torch.randn(y.shape)
    y.backward(g.double())
    inner = Combined(geometry.gradient, (conv_passes.enter(g, output), output), *one(output.channels))
    arguments = (geometry, index, weight.flatten()[index.forward.where], inner, conv_passes.enter(x, source))
    weights, dx = conv_kernels.backward(*arguments, weights=False, into=InputGradient(plain, None, False, None, None))
    assert weights is None
    close(images_of(dx, plain), x64.grad)
    weights, dx = conv_kernels.backward(*arguments, weights=True, into=None)
    assert dx is None
    close(weights, weight64.grad.flatten()[index.forward.where])


@pytest.mark.parametrize("sum_up", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_input_made_on_the_way_is_the_one_made_before(shape, keep, sum_up):
    live, weight, x, geometry = case(*shape)
    index, source = convolution_index(live, geometry), geometry.source
    plain = Layout(source.images, source.channels, source.rows, source.columns)
    scale, shift, scale2 = (torch.randn(source.channels) for _ in range(3))
    other = torch.randn(x.shape)
    combined = Combined(
        source,
        (conv_passes.enter(x, plain), plain),
        scale,
        shift,
        (conv_passes.enter(other, plain), plain),
        scale2,
        True,
    )
    values = weight.flatten()[index.forward.where]
    result = conv_kernels.forward(geometry, index.forward, values, combined, keep=keep, sum_up=sum_up)
    y, made = result.y if result.shift is None else result.y - result.shift[:, None, None], result.x
    a, b, c = (t[:, None, None] for t in (scale, shift, scale2))
    value = torch.relu(a * x + c * other + b)
    close(conv_passes.leave(y, geometry.output), reference(value, weight, *shape[6:])[2])
    assert (made is not None) == keep
    for each in (made, combined.compute()):
        if each is not None:
            close(images_of(each, source), value.double())
            assert each.count_nonzero() == value.count_nonzero()  # the border, and lanes without images, are zero


def test_results_do_not_depend_on_threads():
    live, weight, x, geometry = case(40, 6, 7, 9, 9, (3, 3), 1, (1, 1))
    index, output = convolution_index(live, geometry), geometry.output
    values, here = weight.flatten()[index.forward.where], conv_passes.enter(x, geometry.source)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made = conv_kernels.forward(geometry, index.forward, values, here, sum_up=True)
        inner = Combined(geometry.gradient, (made.y, output), *one(output.channels))
        plain = Layout(40, 6, 9, 9)
        into = InputGradient(plain, None, False, None, None)
        weights, dx = conv_kernels.backward(geometry, index, values, inner, here, weights=True, into=into)
        results.append((made.y, made.sums, weights, dx))
    torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_what_is_no_number_passes_the_relu_as_in_torch():
    layout = Layout(2, 1, 1, 2)
    x = torch.tensor([[[[float("nan"), 1.0]]], [[[-1.0, float("inf")]]]])
    value = Combined(layout, (conv_passes.enter(x, layout), layout), *one(1), rectify=True).compute()
    assert torch.equal(images_of(value, layout).nan_to_num(7), torch.relu(x).nan_to_num(7))
    g = conv_passes.enter(torch.ones_like(x), layout)
    conv_passes.reduce(layout, g, mask=(value, layout))
    x.requires_grad_()
    torch.relu(x).backward(torch.ones_like(x))
    assert torch.equal(images_of(g, layout), x.grad)
