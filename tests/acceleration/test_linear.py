"""The autograd function over live values gives the gradients of the dense layer, and gradients of gradients."""

import pytest
import torch
import torch.nn.functional as F

from flatsparse.acceleration.gradient_memory import GradientMemory
from flatsparse.acceleration.index import index_of
from flatsparse.acceleration.linear import linear
from tests.acceleration.nets import compiled  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled")


def parts(rows=23, columns=37, batch=(5, 7), density=0.2):
    torch.manual_seed(0)
    mask = torch.rand(rows, columns) < density
    w = torch.where(mask, torch.randn(rows, columns), 0).requires_grad_()
    return w, mask, torch.randn(*batch, columns, requires_grad=True), torch.randn(rows, requires_grad=True)


def sparse(w, mask, x, b, wants_whole=None):
    return linear(x, w, b, index_of(mask), wants_whole)


def packed(w, mask, x, b):
    return linear(x, w[mask], b, index_of(mask))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (1,), (5, 7), (2, 3, 11)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sparse", [sparse, packed])
def test_outputs_and_gradients_are_the_dense_layers(sparse, batch, bias):
    w, mask, x, b = parts(batch=batch)
    b = b if bias else None
    inputs = [x, w, b][: 2 + bias]
    dense, ours = F.linear(x, w, b), sparse(w, mask, x, b)
    close(ours, dense)
    g = torch.randn_like(dense)
    exact, got = (torch.autograd.grad(y, inputs, g) for y in (dense, ours))
    close(got[0], exact[0])
    close(got[1], exact[1] * mask)
    assert (got[1][~mask] == 0).all()
    if bias:
        close(got[2], exact[2])


def test_inputs_that_are_not_contiguous_or_are_expanded_are_served():
    w, mask, _, b = parts()
    for x in (torch.randn(37, 9).t(), torch.randn(1, 37).expand(9, 37), torch.randn(4, 9, 74)[..., ::2]):
        close(sparse(w, mask, x, b), F.linear(x, w, b))
    ours = sparse(w, mask, torch.randn(9, 37), b)
    ours.sum().backward()  # the gradient of a sum is expanded
    close(b.grad, torch.full((23,), 9.0))


def test_the_whole_gradient_is_given_where_it_is_wanted():
    w, mask, x, b = parts()
    wanted = [False]
    y = sparse(w, mask, x, b, lambda: wanted[0])
    g = torch.randn_like(y)
    (exact,) = torch.autograd.grad(F.linear(x, w, b), w, g)
    for wanted[0] in (True, False, True):
        (got,) = torch.autograd.grad(y, w, g, retain_graph=True)
        close(got, exact if wanted[0] else exact * mask)
    wanted[0] = True
    first = torch.autograd.grad(y.square().sum(), w, create_graph=True)[0]
    close(first, torch.autograd.grad(F.linear(x, w, b).square().sum(), w)[0])


@pytest.mark.parametrize("sparse", [sparse, packed])
def test_gradients_of_gradients_are_the_dense_layers(sparse):
    w, mask, x, b = parts()

    def products(form):
        first = torch.autograd.grad(form(x).square().sum(), [x, w, b], create_graph=True)
        along = [torch.ones_like(t) for t in first]
        along[1] = along[1] * mask
        return torch.autograd.grad(first, [x, w, b], along)

    exact = products(lambda x: F.linear(x, w * mask, b))
    for ours, its in zip(products(lambda x: sparse(w, mask, x, b)), exact, strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-3, atol=1e-3)


def test_only_what_is_asked_for_is_computed():
    w, mask, x, b = parts()
    y = sparse(w.detach(), mask, x, b.detach())
    y.sum().backward()
    assert x.grad is not None
    z = sparse(w, mask, x.detach(), b.detach())
    z.sum().backward()
    close(w.grad, x.detach().sum((0, 1)).expand(23, 37) * mask)
    with torch.no_grad():
        assert not sparse(w, mask, x, b).requires_grad


def test_the_memory_of_a_gradient_is_used_again_once_nobody_holds_it():
    w, mask, x, b = parts()
    index, memory = index_of(mask), GradientMemory()
    places, held = [], []
    for step in range(7):
        linear(x, w, b, index, None, memory).sum().backward()
        places.append(w.grad.data_ptr())
        if step in (2, 4):
            held.append((w.grad if step == 2 else w.grad[1:3].numpy(), w.grad.clone()))
        w.grad = None
    assert places[0] == places[1] == places[2]
    assert places[3] == places[4] != places[2]
    assert places[5] == places[6] != places[4]
    whole, part = held
    assert torch.equal(*whole)
    assert (part[0] == part[1][1:3].numpy()).all()


def test_gradients_add_up():
    w, mask, x, b = parts()
    index, memory = index_of(mask), GradientMemory()
    for _ in range(3):
        (linear(x, w, b, index, None, memory) + linear(x, w, b, index, None, memory)).sum().backward()
    close(w.grad, 6 * x.detach().sum((0, 1)).expand(23, 37) * mask)
