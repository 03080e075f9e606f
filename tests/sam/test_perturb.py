"""The formula ``u = w + ρ d/‖d‖``, by itself."""

import pytest
import torch
from torch import nn

from flatsparse.sam.perturb import Part, perturb_

SHAPES = [(4, 3), (5,), (2, 3, 2, 2)]


def parts_of(rhos, dtype=torch.float32, indices=(None, None, None), seed=0):
    source = torch.Generator().manual_seed(seed)
    parts = []
    for shape, rho, at in zip(SHAPES, rhos, indices, strict=True):
        w, d = (torch.randn(shape, generator=source).to(dtype) for _ in range(2))
        parts.append(Part(nn.Parameter(w), d, rho, at, torch.empty_like(w) if at is None else w.new_empty(at.shape)))
    return parts


def length(tensors):
    return torch.cat([t.detach().flatten().double() for t in tensors]).norm()


@pytest.mark.parametrize("rhos", [(0.5, 0.5, 0.5), (0.5, -0.2, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_u_is_w_plus_rho_d_over_the_norm_of_all_directions(rhos, dtype):
    parts = parts_of(rhos, dtype)
    perturb_(parts)
    whole = length(part.d for part in parts)
    for part in parts:
        expected = part.w.detach().double() + part.rho * part.d.double() / whole
        torch.testing.assert_close(part.u, expected.to(dtype))


def test_with_eta_it_is_asam_s():
    parts = parts_of((0.5, 0.5, 0.5))
    perturb_(parts, eta=0.1)
    sizes = [part.w.detach().abs().double() + 0.1 for part in parts]
    whole = length(t * part.d for t, part in zip(sizes, parts, strict=True))
    for t, part in zip(sizes, parts, strict=True):
        torch.testing.assert_close(part.u, (part.w.detach() + 0.5 * t * t * part.d / whole).float())


@pytest.mark.parametrize("eta", [None, 0.1])
def test_at_indices_it_is_the_same_there(eta):
    at = (torch.tensor([0, 5, 7]), None, torch.tensor([1, 23]))
    compact, whole = parts_of((0.5, 0.5, 0.5), indices=at), parts_of((0.5, 0.5, 0.5))
    for some, part in zip(compact, whole, strict=True):  # directions are zero elsewhere, as gradients of masked weights
        if some.indices is not None:
            outside = torch.ones(part.d.numel(), dtype=torch.bool)
            outside[some.indices] = False
            part.d.view(-1)[outside] = some.d.view(-1)[outside] = 0
    perturb_(compact, eta)
    perturb_(whole, eta)
    for some, part in zip(compact, whole, strict=True):
        torch.testing.assert_close(some.u, part.u if some.indices is None else part.u.view(-1)[some.indices])


def test_a_direction_may_be_its_own_result_and_no_direction_moves_nothing():
    parts, own = parts_of((0.5, 0.5, 0.5)), parts_of((0.5, 0.5, 0.5))
    perturb_(parts)
    perturb_([part._replace(u=part.d) for part in own])
    assert all(torch.equal(a.u, b.d) for a, b in zip(parts, own, strict=True))
    still = [part._replace(d=torch.zeros_like(part.d)) for part in parts]
    perturb_(still)
    assert all(torch.equal(part.u, part.w) for part in still)
    perturb_([])
