"""The compiled kernels agree with dense products in float64, at any shape, for each instruction set, on one thread and two."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatsparse.acceleration import kernels, products
from flatsparse.acceleration.index import index_of
from flatsparse.common import instructions
from flatsparse.common.errors import InputError
from tests.acceleration.nets import compiled, sets, without_compiler  # noqa: F401

ROUNDING = 1e-5  # of the largest entry: float32 sums of at most some hundred products

SIZES = st.one_of(st.integers(1, 70), st.sampled_from([128, 131]))


def matrix(rows, columns, density, seed):
    torch.manual_seed(seed)
    mask = torch.rand(rows, columns) < density
    return torch.where(mask, torch.randn(rows, columns), 0), mask


def agree(ours, exact):
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() <= ROUNDING * exact.abs().max().clamp(min=1)


def check_products(rows, columns, batch, density, seed, bias):
    w, mask = matrix(rows, columns, density, seed)
    index = index_of(mask)
    x, dy, b = torch.randn(batch, columns), torch.randn(batch, rows), torch.randn(rows) if bias else None
    exact = x.double() @ w.double().t() + (b.double() if bias else 0)
    noise = torch.where(mask, w, torch.randn_like(w))  # what is masked does not count
    y, values = products.forward(x, noise, b, index)
    agree(y, exact)
    assert torch.equal(values, w[mask])
    assert torch.equal(products.forward(x, values, b, index)[0], y)
    assert torch.equal(products.dense(values, index), w)
    for wants_x, wants_values in ((True, True), (True, False), (False, True), (False, False)):
        wants = {"wants_x": wants_x, "wants_values": wants_values}
        dx, dvalues = products.backward(x, values, dy, index, **wants)
        assert (dx is not None, dvalues is not None) == (wants_x, wants_values)
        if wants_x:
            agree(dx, dy.double() @ w.double())
        if wants_values:
            agree(products.dense(dvalues, index), (dy.double().t() @ x.double()) * mask)
            into = torch.full_like(w, torch.nan)
            assert products.backward(x, values, dy, index, **wants, into=into)[1] is into
            assert torch.equal(into, products.dense(dvalues, index))


given_sizes = given(SIZES, SIZES, SIZES, st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), st.integers(0, 9), st.booleans())
quiet = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.mark.parametrize("instructions", sets())
@settings(max_examples=25, **quiet)
@given_sizes
def test_products_agree(compiled, instructions, rows, columns, batch, density, seed, bias):  # noqa: F811
    compiled.use(instructions)
    check_products(rows, columns, batch, density, seed, bias)


@pytest.mark.parametrize("instructions", sets())
@settings(max_examples=3, **quiet)  # where cores are taken, threads wait long for each other
@given_sizes
def test_products_agree_on_two_threads(compiled, instructions, rows, columns, batch, density, seed, bias):  # noqa: F811
    compiled.use(instructions)
    torch.set_num_threads(2)
    try:
        check_products(rows, columns, batch, density, seed, bias)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchs_sparse_rows_agree_where_no_compiler_is_at_hand(without_compiler, rows, density):  # noqa: F811
    assert not products.is_compiled()
    check_products(rows, 45, 33, density, 0, bias=True)


@pytest.mark.parametrize("instructions", sets())
def test_what_one_sample_gets_does_not_depend_on_the_others(compiled, instructions):  # noqa: F811
    compiled.use(instructions)
    w, mask = matrix(50, 60, 0.2, 0)
    index, x = index_of(mask), torch.randn(70, 60)
    alone = torch.cat([products.forward(one, w, None, index)[0] for one in x.split(1)])
    assert torch.equal(products.forward(x, w, None, index)[0], alone)


@pytest.mark.parametrize("instructions", sets())
def test_non_finite_numbers_stay_where_they_belong(compiled, instructions):  # noqa: F811
    compiled.use(instructions)
    w, mask = matrix(40, 30, 0.3, 0)
    index, x, dy = index_of(mask), torch.randn(33, 30), torch.randn(33, 40)
    x[32, 3] = torch.nan
    dy[1, 39] = torch.inf
    y, values = products.forward(x, w, None, index)
    assert y.isfinite()[:32].all()
    assert torch.equal(y[32].isnan(), mask[:, 3])
    dx, dvalues = products.backward(x, values, dy, index, wants_x=True, wants_values=True)
    assert torch.equal(dx.isfinite(), (mask[39][None] & (torch.arange(33) == 1)[:, None]).logical_not())
    strange = torch.zeros_like(mask)
    strange[:, 3] = strange[39] = True
    assert torch.equal(dvalues.isfinite(), ~strange[mask])


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_an_index_lists_the_active_entries_by_rows_and_by_columns(rows):
    _, mask = matrix(rows, 31, 0.3, rows)
    mask[:, 7] = False
    index = index_of(mask)
    assert torch.equal(index.positions(), mask.flatten().nonzero().squeeze(1))
    by_column = [(i, j) for j in range(31) for i in range(rows) if mask[i, j]]
    columns = torch.repeat_interleave(torch.arange(31), index.column_start.diff())
    assert list(zip(index.row.tolist(), columns.tolist(), strict=True)) == by_column
    assert torch.equal(index.positions()[index.place], index.row * 31 + columns)


def test_an_instruction_set_that_is_none_is_refused(compiled):  # noqa: F811
    with pytest.raises(InputError, match=r"\A.*no instruction set 'sse9': take one of plain, avx2, avx512\Z"):
        compiled.use("sse9")


def test_a_set_that_the_processor_has_not_is_refused(compiled, monkeypatch):  # noqa: F811
    monkeypatch.setattr(instructions, "SETS", ("plain", "avx2", "avx512", "avx1024"))
    with pytest.raises(InputError, match="has no avx1024"):
        compiled.use("avx1024")


def test_the_environment_chooses_the_set(compiled, monkeypatch):  # noqa: F811
    monkeypatch.setenv("FLATSPARSE_INSTRUCTIONS", "plain")
    kernels.library.cache_clear()
    assert kernels.library().flatsparse_use(99) == 0
    monkeypatch.delenv("FLATSPARSE_INSTRUCTIONS")
    kernels.library.cache_clear()
