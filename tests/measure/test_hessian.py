import gc
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse
from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.curvature import Hessian, eigenvalues, extremes, spectrum, trace
from flatsparse.measure import lanczos, spectral
from flatsparse.measure.hessian import _saved_bytes
from flatsparse.measure.lanczos import extreme_eigenvalues, tridiagonal
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


def counted_terms(net, calls):
    """The loss of a net in two terms, and a linear one; every call is noted."""
    whole = loss_of(net)

    def terms():
        calls.append(1)
        yield 0.25 * whole()
        yield net[0].weight.sum()
        yield 0.75 * whole()

    return terms


def test_with_graphs_kept_products_are_the_same_and_the_loss_is_computed_once():
    net, masks = smooth_net(torch.float32)
    calls = []
    hessian = Hessian(net, counted_terms(net, calls), masks)
    vectors = torch.randn(5, hessian.size)
    apart = [hessian @ v for v in vectors]
    assert len(calls) == 5
    with hessian.keeping_graphs():
        together = [hessian @ v for v in vectors]
        with hessian.keeping_graphs():  # within another it is nothing
            together.append(hessian @ vectors[0])
        together.append(hessian @ vectors[1])
    assert len(calls) == 6
    assert all(map(torch.equal, together, [*apart, apart[0], apart[1]]))
    assert torch.equal(hessian @ vectors[0], apart[0])
    assert len(calls) == 7


def test_graphs_are_made_anew_after_a_write_to_the_weights():
    net, masks = smooth_net()
    hessian, v = Hessian(net, loss_of(net), masks), torch.randn(int(masks["0.weight"].sum()) + 39)
    with hessian.keeping_graphs():
        before = hessian @ v
        with torch.no_grad():
            net[2].weight.mul_(1.5)
        after = hessian @ v
    assert torch.equal(after, hessian @ v)
    assert not torch.equal(after, before)


def test_graphs_that_do_not_fit_are_not_kept(monkeypatch):
    net, _ = smooth_net()
    calls = []
    hessian = Hessian(net, counted_terms(net, calls))
    v = torch.randn(hessian.size, dtype=torch.float64)
    monkeypatch.setattr("flatsparse.measure.hessian.free_memory", lambda device: 1000)
    with hessian.keeping_graphs():
        products = [hessian @ v for _ in range(3)]
    assert len(calls) == 3
    assert all(torch.equal(product, hessian @ v) for product in products)


def test_the_bytes_of_a_graph_are_those_of_the_tensors_it_saves():
    w = nn.Parameter(torch.randn(4, 3))
    x = torch.randn(5, 4)
    hidden = (x @ w).exp()  # saves x, and its result
    assert _saved_bytes([hidden.sum()], [w]) == x.nbytes + hidden.nbytes
    assert _saved_bytes([hidden.sum(), hidden.tanh()], [w]) == x.nbytes + 2 * hidden.nbytes


def test_no_graph_outlives_its_context():
    net, _ = smooth_net()
    inputs = torch.randn(8, 6, dtype=torch.float64)
    alive = weakref.ref(inputs)
    hessian = Hessian(net, lambda: net(alive()).square().sum())
    with hessian.keeping_graphs():
        hessian @ hessian.vector()
        del inputs
        assert alive() is not None
    gc.collect()
    assert alive() is None


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


def operator(eigenvalues, dtype=torch.float64):
    """A symmetric matrix of these eigenvalues in random directions, as a product in a precision."""
    size = len(eigenvalues)
    directions, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator(0, "directions")))
    matrix = ((directions * eigenvalues) @ directions.T).to(dtype)
    return lambda vector: (matrix @ vector.to(dtype)).to(vector)


def drawn(size, seed=0):
    source = generator(seed, "start")
    return lambda: torch.randn(size, generator=source, dtype=torch.float64)


SIZE = 300
SPECTRA = {
    "decaying": torch.cat([torch.logspace(1, -4, 250), -torch.logspace(-1, -4, 50)]),
    "clustered": torch.cat([torch.linspace(9.5, 10, 10), torch.linspace(0, 1, 290)]),
    "repeated": torch.cat([torch.full((5,), 4.0), torch.linspace(0, 1, 295)]),
    "even": torch.linspace(-1, 1, SIZE),
    "singular": torch.cat([torch.logspace(1, -3, 50), torch.zeros(250)]),
    "of rank one": torch.cat([torch.tensor([3.0]), torch.zeros(299)]),
    "zero": torch.zeros(SIZE),
    "identity": torch.ones(SIZE),
}


# A second zero of a singular matrix is beyond the reach of a Krylov space in exact arithmetic.
ENDS = [
    (n, low, high)
    for n in SPECTRA
    for low, high in ((0, 1), (0, 3), (1, 0), (1, 1), (2, 3))
    if n != "singular" or low < 2
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "low", "high"), ENDS)
def test_lanczos_agrees_with_the_dense_eigenvalues(name, low, high, dtype):
    spectrum = SPECTRA[name].double().sort().values
    exact = torch.cat([spectrum[:low], spectrum[SIZE - high :]])
    precision = torch.finfo(dtype).eps
    times = operator(spectrum, dtype)
    found = extreme_eigenvalues(times, drawn(SIZE), low, high, tolerance=1e-3, precision=precision)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=10 * precision * float(spectrum.abs().max()))


@pytest.mark.parametrize("size", [2, 3, 19, 20, 21, 22])
def test_lanczos_in_a_space_no_larger_than_its_basis_is_exact(size):
    spectrum = torch.linspace(-1, 2, size, dtype=torch.float64)
    found = extreme_eigenvalues(operator(spectrum), drawn(size), 1, 1, tolerance=1e-9, precision=1e-15)
    assert found.tolist() == pytest.approx([-1, 2], rel=1e-9)


def test_as_many_products_as_arpack_would_take_or_fewer():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    spectrum, calls = SPECTRA["decaying"].double(), []
    times = operator(spectrum)

    def counted(vector):
        calls.append(1)
        return times(vector)

    extreme_eigenvalues(counted, drawn(SIZE), 1, 1, tolerance=1e-2, precision=1e-15)
    ours = len(calls)
    matrix = linalg.LinearOperator(
        (SIZE, SIZE), matvec=lambda v: counted(torch.as_tensor(v.reshape(-1))).numpy(), dtype=np.float64
    )
    linalg.eigsh(matrix, k=2, which="BE", v0=drawn(SIZE)().numpy(), tol=1e-2, return_eigenvectors=False)
    assert ours <= 1.2 * (len(calls) - ours)


def test_a_tridiagonal_form_has_the_eigenvalues_that_its_start_reaches():
    spectrum = torch.cat([torch.full((10,), 2.0), torch.full((10,), -1.0), torch.full((10,), 0.5)]).double()
    form = tridiagonal(operator(spectrum), drawn(30)(), steps=12)
    assert torch.linalg.eigvalsh(form).tolist() == pytest.approx([-1, 0.5, 2])


def test_eigenvalues_that_do_not_converge_are_an_input_error(monkeypatch):
    monkeypatch.setattr(lanczos, "RESTARTS", 1)
    net, _ = smooth_net()
    with pytest.raises(InputError, match=r"the both eigenvalues did not settle to 1e-09: give a larger tolerance"):
        eigenvalues(Hessian(net, loss_of(net)), 2, "both", tolerance=1e-9)


def test_a_hessian_that_is_not_finite_is_an_input_error():
    net, _ = smooth_net()
    loss = loss_of(net)
    with pytest.raises(InputError, match="not finite at these weights: lower"):
        eigenvalues(Hessian(net, lambda: loss() * float("nan")))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 30, 399, 1000])
def test_students_quantile_is_that_of_scipy(freedom):
    stats = pytest.importorskip("scipy.stats")
    assert spectral._student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


def test_all_of_it_works_without_scipy():
    code = """
        import sys
        sys.modules["scipy"] = None
        import torch, flatsparse.curvature as c
        net = torch.nn.Linear(30, 2)
        loss = lambda: net(torch.ones(4, 30)).square().sum()
        hessian = c.Hessian(net, loss)
        print(c.eigenvalues(hessian, 2), c.trace(hessian), c.spectrum(hessian).nodes, c.extremes(net, loss))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(flatsparse.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True)
