"""Layers whose masks are of whole 16×1 blocks run on kernels of their own, which agree with dense products."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatsparse as fs
from flatsparse.acceleration import measure, products
from flatsparse.acceleration.block_index import BlockIndex
from flatsparse.acceleration.index import index_of
from flatsparse.acceleration.linear import linear
from flatsparse.acceleration.row_index import RowIndex
from tests.acceleration.nets import always_sparse, compiled, sets, without_compiler  # noqa: F401
from tests.acceleration.test_kernels import check, quiet
from tests.helpers import copied, same, sgd

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([128, 131, 260]))
given_sizes = given(
    st.integers(1, 6), SIZES, SIZES, st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0]), st.integers(0, 9), st.booleans()
)
every_set = pytest.mark.parametrize("instructions", sets())


def block_matrix(blocks, columns, density, seed=0):
    """A matrix of 16 rows for each of some blocks, some of which may be empty."""
    torch.manual_seed(seed)
    mask = (torch.rand(blocks, columns) < density).repeat_interleave(16, 0)
    return torch.where(mask, torch.randn(mask.shape), 0), mask


def check_blocks(blocks, columns, batch, density, seed, bias):
    w, mask = block_matrix(blocks, columns, density, seed)
    assert isinstance(index_of(mask), BlockIndex)
    check(w, mask, batch, bias)


@every_set
@settings(max_examples=40, **quiet)
@given_sizes
def test_products_agree(compiled, instructions, blocks, columns, batch, density, seed, bias):  # noqa: F811
    compiled.use(instructions)
    check_blocks(blocks, columns, batch, density, seed, bias)


@every_set
@settings(max_examples=3, **quiet)
@given_sizes
def test_products_agree_on_two_threads(compiled, instructions, blocks, columns, batch, density, seed, bias):  # noqa: F811
    compiled.use(instructions)
    torch.set_num_threads(2)
    try:
        check_blocks(blocks, columns, batch, density, seed, bias)
    finally:
        torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchs_sparse_rows_agree_where_no_compiler_is_at_hand(without_compiler):  # noqa: F811
    assert not products.is_compiled()
    check_blocks(3, 45, 33, 0.1, 0, bias=True)


@every_set
def test_every_size_of_a_batch_and_of_a_row_agrees(compiled, instructions):  # noqa: F811
    compiled.use(instructions)
    for count in range(36):  # what is left after groups of blocks and tiles of samples
        w, mask = block_matrix(2, 40, 1.0, count)
        mask[:16, count:] = False
        check(torch.where(mask, w, 0), mask, count + 1, bias=True)


@every_set
def test_what_one_sample_gets_does_not_depend_on_the_others(compiled, instructions):  # noqa: F811
    compiled.use(instructions)
    w, mask = block_matrix(3, 60, 0.2)
    index, x, dy = index_of(mask), torch.randn(70, 60), torch.randn(70, 48)

    def both(x, dy):
        y, values = products.forward(x, w, None, index)
        return y, products.backward(x, values, dy, index, wants_x=True, wants_values=False)[0]

    alone = [torch.cat(part) for part in zip(*map(both, x.split(1), dy.split(1)), strict=True)]
    for together, one_by_one in zip(
        both(x, dy), alone, strict=True
    ):  # compilers add tiles of samples and single ones differently
        torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-5)


@every_set
def test_non_finite_numbers_stay_where_they_belong(compiled, instructions):  # noqa: F811
    compiled.use(instructions)
    w, mask = block_matrix(3, 30, 0.3)
    index, x, dy = index_of(mask), torch.randn(33, 30), torch.randn(33, 48)
    x[32, 3], dy[1, 40] = torch.nan, torch.inf
    y, values = products.forward(x, w, None, index)
    assert y.isfinite()[:32].all()
    assert torch.equal(y[32].isnan(), mask[:, 3])
    dx, dvalues = products.backward(x, values, dy, index, wants_x=True, wants_values=True)
    assert torch.equal(dx.isfinite(), (mask[40][None] & (torch.arange(33) == 1)[:, None]).logical_not())
    strange = torch.zeros_like(mask)
    strange[:, 3] = strange[40] = True
    assert torch.equal(dvalues.isfinite(), ~strange[mask])


def test_an_index_lists_whole_blocks_and_no_others():
    _, mask = block_matrix(4, 31, 0.3)
    mask[16:32] = False
    index = index_of(mask)
    plain = [(o, c) for o in range(4) for c in range(31) if mask[16 * o, c]]
    assert index.column.tolist() == [c for _, c in plain]
    assert index.start.tolist() == [sum(o < row for o, _ in plain) for row in range(5)]
    assert torch.equal(index.positions(), mask.flatten().nonzero().squeeze(1))
    assert index.entries == int(mask.sum())
    assert same(index_of(mask.t().contiguous().t()).column, index.column)  # in another order in memory
    for other in (mask[:24], torch.cat([mask[8:], mask[:8]])):
        assert isinstance(index_of(other), RowIndex)
    mask[63, 30] ^= True
    assert isinstance(index_of(mask), RowIndex)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_and_their_gradients_are_the_dense_layers(compiled, packed):  # noqa: F811
    w, mask = block_matrix(2, 37, 0.2)
    index = index_of(mask)
    w, x, b = w.requires_grad_(), torch.randn(2, 3, 37, requires_grad=True), torch.randn(32, requires_grad=True)
    ours = lambda: linear(x, w[mask] if packed else w, b, index)  # noqa: E731
    dense = lambda: F.linear(x, w * mask, b)  # noqa: E731
    g = torch.randn(2, 3, 32)
    for got, exact in zip(*(torch.autograd.grad(f(), [x, w, b], g) for f in (ours, dense)), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)

    def twice(form):
        first = torch.autograd.grad(form().square().sum(), [x, w, b], create_graph=True)
        return torch.autograd.grad(first, [x, w, b], [torch.ones_like(t) for t in (x, w * mask, b)])

    for got, exact in zip(twice(ours), twice(dense), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-3)


# -- accelerated models -----------------------------------------------------------------------------------------------


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 32, bias=False), nn.ReLU(), nn.Linear(32, 5))


def trained(method, accelerated, steps=12):
    """A model after some steps, and what its layers did."""
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.05)
    options = {} if method == "static" else {"every": 3}
    training = fs.sparsify(
        model, optimizer, method, sparsity=0.8, steps=steps, pattern="block:16x1", exclude=["4"], **options
    )
    handle = fs.accelerate(model, training) if accelerated else None
    source = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, targets = torch.randn(9, 24, generator=source), torch.randint(5, (9,), generator=source)
        F.cross_entropy(model(x), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, training, handle


@pytest.mark.parametrize("method", ["static", "set", "rigl", "gmp"])
def test_a_run_ends_where_the_masked_one_ends(compiled, always_sparse, method):  # noqa: F811
    plain, masked, _ = trained(method, False)
    ours, training, handle = trained(method, True)
    assert all(kind.blocks for kind in always_sparse)
    assert set(handle.layers.values()) == {"sparse"}
    assert same(copied(training.masks), copied(masked.masks))
    for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1e-3)


def test_given_masks_of_whole_blocks_run_on_them_too(compiled, always_sparse):  # noqa: F811
    model, masks = mlp(), {"0.weight": block_matrix(3, 24, 0.2)[1], "2.weight": torch.rand(32, 48) < 0.2}
    training = fs.sparsify(model, sgd(model.parameters()), "static", masks=masks, steps=5)
    fs.accelerate(model, training)
    model(torch.randn(7, 24))
    assert [kind.blocks for kind in always_sparse] == [True, False]


def test_blocks_are_measured_as_blocks(compiled, monkeypatch):  # noqa: F811
    found = []
    plain = measure.index_of
    monkeypatch.setattr(measure, "index_of", lambda mask: found.append(plain(mask)) or found[-1])
    for mask in (block_matrix(4, 40, 0.2)[1], torch.rand(64, 40) < 0.2):
        kind = measure.Kind.of(index_of(mask), 8, wants_x=True, wants_values=True)
        assert measure.speedup(kind) >= 0
    assert [type(index) for index in found] == [BlockIndex, RowIndex]
