import importlib
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.measure.hessian import Hessian, eigenvalues, extremes, spectrum, trace
from tests.helpers import batch


def smooth_net(dtype=torch.float64):
    """87 weights, 60 of them in a matrix with a mask, and a bias that is not used."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    net.register_parameter("idle", nn.Parameter(torch.zeros(4, dtype=dtype)))
    mask = torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    with torch.no_grad():
        net[0].weight.mul_(mask)
    return net, {"0.weight": mask}


def loss_of(net):
    inputs, targets = batch(0, size=32, dtype=next(net.parameters()).dtype)
    return lambda: F.cross_entropy(net(inputs), targets)


def dense_hessian(net):
    """The plain form: torch's own, of the loss as a function of all weights in one vector."""
    named = dict(net.named_parameters())
    inputs, targets = batch(0, size=32, dtype=torch.float64)
    start = torch.cat([p.detach().double().flatten() for p in named.values()])

    def loss(flat):
        pieces = flat.split([p.numel() for p in named.values()])
        weights = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, weights, (inputs,)), targets)

    return torch.autograd.functional.hessian(loss, start)


def live_places(net, masks):
    flat = [masks.get(n, torch.ones_like(p, dtype=torch.bool)).flatten() for n, p in net.named_parameters()]
    return torch.cat(flat).nonzero().squeeze(1)


def both_spaces():
    net, masks = smooth_net()
    dense, live = dense_hessian(net), live_places(net, masks)
    return [(Hessian(net, loss_of(net)), dense), (Hessian(net, loss_of(net), masks), dense[live][:, live])]


def test_products_are_those_of_the_dense_matrix_and_of_its_live_part():
    for hessian, dense in both_spaces():
        assert hessian.size == len(dense)
        product = torch.stack([hessian @ row for row in torch.eye(len(dense), dtype=torch.float64)])
        torch.testing.assert_close(product, dense)


def test_terms_are_summed_and_linear_ones_count_nothing():
    net, _ = smooth_net()
    whole = loss_of(net)
    parts = Hessian(net, lambda: (share * whole() for share in (0.25, 0.75)))
    bent = Hessian(net, lambda: [whole(), net[0].weight.sum()])
    v = torch.randn(parts.size, dtype=torch.float64)
    for hessian in (parts, bent):
        torch.testing.assert_close(hessian @ v, Hessian(net, whole) @ v)


def test_the_ends_of_the_spectrum_agree_with_the_dense_matrix():
    for hessian, dense in both_spaces():
        exact = torch.linalg.eigvalsh(dense).flip(0).tolist()
        assert eigenvalues(hessian, 3) == pytest.approx(exact[:3], rel=1e-2)
        assert eigenvalues(hessian, 1, "smallest") == pytest.approx(exact[-1:], rel=1e-2)
        assert eigenvalues(hessian, 2, "both") == pytest.approx([exact[0], exact[-1]], rel=1e-2)


def test_extremes_are_within_a_percent_in_single_precision():
    net, masks = smooth_net(torch.float32)
    told, dense, live = extremes(net, loss_of(net), masks, samples=400), dense_hessian(net), live_places(net, masks)
    for space, matrix in (("all", dense), ("live", dense[live][:, live])):
        exact = torch.linalg.eigvalsh(matrix)
        assert told[space]["weights"] == len(matrix)
        assert told[space]["largest"] == pytest.approx(float(exact[-1]), rel=1e-2)
        assert told[space]["smallest"] == pytest.approx(float(exact[0]), rel=1e-2)
        assert abs(told[space]["trace"] - float(matrix.trace())) < 1.5 * told[space]["trace_half"]
    assert told["all"]["largest"] > told["live"]["largest"]
    assert extremes(net, loss_of(net))["live"] == extremes(net, loss_of(net))["all"]


def test_the_interval_of_a_trace_holds_it_nineteen_times_in_twenty():
    for hessian, dense in both_spaces():
        exact = float(dense.trace())
        found = [trace(hessian, samples=5, seed=seed) for seed in range(100)]
        held = sum(abs(estimate.value - exact) <= estimate.half for estimate in found)
        assert 88 <= held <= 100
        beside = dense - torch.diag(dense.diagonal())
        deviation = float((2 * beside.square().sum()).sqrt())  # of one sample: Hutchinson's own
        assert abs(np.mean([estimate.value for estimate in found]) - exact) < 4 * deviation / 500**0.5


def test_the_spectrum_has_the_moments_of_the_matrix_and_fills_with_its_eigenvalues():
    for hessian, dense in both_spaces():
        few = spectrum(hessian, starts=200, steps=4)
        for power in range(4):
            exact = float(torch.linalg.matrix_power(dense, power).trace()) / len(dense)
            assert float((few.weights * few.nodes**power).sum()) == pytest.approx(exact, rel=0.15)
        exact = torch.linalg.eigvalsh(dense)
        full = spectrum(hessian, starts=1, steps=len(dense))
        assert float(full.nodes.max()) == pytest.approx(float(exact[-1]), rel=1e-6)
        at = torch.linspace(-2, float(exact[-1]) + 2, 2000)
        assert float(torch.trapezoid(full.density(at, width=0.05), at)) == pytest.approx(1, rel=1e-3)


def test_a_quadrature_is_exact_for_its_own_start():
    """Gauss: with m products ``Σ weight·node^k`` is ``vᵀHᵏv / vᵀv`` for k up to 2m − 1; seen for m = 3, k = 5."""
    for hessian, dense in both_spaces():
        found = spectrum(hessian, starts=1, steps=3, seed=7)
        v = torch.randint(0, 2, (len(dense),), generator=generator(7, "spectrum")).double() * 2 - 1
        for power in range(6):
            exact = float(v @ torch.linalg.matrix_power(dense, power) @ v / len(dense))
            assert float((found.weights * found.nodes**power).sum()) == pytest.approx(exact, rel=1e-6)


def test_nothing_is_left_in_the_model():
    net, masks = smooth_net()
    before = [p.detach().clone() for p in net.parameters()]
    extremes(net, loss_of(net), masks)
    assert all(p.grad is None and torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))


def test_masks_of_another_model_and_too_many_eigenvalues_are_refused():
    net, _ = smooth_net()
    with pytest.raises(InputError, match=r"unknown parameter '0\.weights'"):
        Hessian(net, loss_of(net), {"0.weights": torch.ones(8, 6, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"is \(6, 8\), the parameter \(8, 6\)"):
        Hessian(net, loss_of(net), {"0.weight": torch.ones(6, 8, dtype=torch.bool)})
    with pytest.raises(InputError, match="not below"):
        eigenvalues(Hessian(net, loss_of(net)), 200)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 4, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x):
        return self.encoder(x, src_key_padding_mask=torch.arange(3).expand(len(x), 3) == 2)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(4, 2, 4, activation="gelu", batch_first=True)

    def forward(self, x):
        return self.decoder(x, x, tgt_is_causal=True, tgt_mask=nn.Transformer.generate_square_subsequent_mask(3).to(x))


def compiled_attention():
    return torch.compile(Attention(), backend="aot_eager")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", [Attention, Padded, Decoder, pytest.param(compiled_attention, marks=pytest.mark.slow)])
def test_products_through_attention_are_differences_of_gradients(make):
    torch.manual_seed(0)
    net, inputs = make().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    parameters = list(net.parameters())
    hessian = Hessian(net, lambda: net(inputs)[:, :2].square().sum())
    vector = torch.randn(hessian.size, dtype=torch.float64)

    def gradient(step):
        moved = torch.cat([p.detach().flatten() for p in parameters]) + step * vector
        named = zip(net.state_dict(), moved.split([p.numel() for p in parameters]), strict=True)
        weights = {name: piece.view_as(p).requires_grad_() for (name, piece), p in zip(named, parameters, strict=True)}
        loss = torch.func.functional_call(net, weights, (inputs,))[:, :2].square().sum()
        return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, weights.values())])

    torch.testing.assert_close(hessian @ vector, (gradient(1e-5) - gradient(-1e-5)) / 2e-5, rtol=1e-5, atol=1e-5)


def test_a_loss_without_second_derivative_is_an_input_error():
    net, length = nn.Linear(2, 3), torch.tensor([1])

    def loss():
        scores = net(torch.ones(4, 1, 2)).square().log_softmax(-1)
        return F.ctc_loss(scores, torch.tensor([[1]]), 4 * length, length)

    with pytest.raises(InputError, match=r"no second derivative \(.*ctc_loss_backward is not implemented\): give"):
        Hessian(net, loss) @ torch.ones(9)


def test_without_scipy_products_remain_and_the_rest_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("scipy", "scipy.sparse.linalg", "scipy.special"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "flatsparse.measure.hessian")
    curvature = importlib.import_module("flatsparse.measure.hessian")
    net, _ = smooth_net()
    hessian = curvature.Hessian(net, loss_of(net))
    assert (hessian @ hessian.vector()).norm() == 0
    assert len(curvature.spectrum(hessian, steps=2).nodes) == 6
    for estimate in (curvature.eigenvalues, curvature.trace):
        with pytest.raises(InputError, match=r"need 'scipy': install it with pip install 'flatsparse\[lab\]'$"):
            estimate(hessian)
