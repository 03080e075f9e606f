"""What becomes of matrices with owners of every kind: taken, left dense with a word, or refused; and which way round they are."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import flatsparse as fs
from flatsparse.common.tensors import shared_storage
from flatsparse.common.weight_layout import inputs_first, outputs_first
from flatsparse.measure.surface import direction
from flatsparse.measure.topology import health
from flatsparse.sparse.layers import prunable
from tests.helpers import sgd


class Conv1D(nn.Module):
    """The linear layer of transformers' GPT-2, which stores (inputs, outputs)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class Own(nn.Module):
    """A matrix multiply that no library knows."""

    def __init__(self, *shape):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(*shape))

    def forward(self, x):
        return x @ self.matrix


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have the newer form
        return nn.utils.weight_norm(layer)


def static(model, **choice):
    return fs.sparsify(model, sgd(model.parameters()), "static", **{"sparsity": 0.75, "steps": 10, **choice})


def silently(model, **choice):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return static(model, **choice)


# -- taken by default -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (Conv1D(6, 4), ["weight"]),
        (nn.GRUCell(4, 4), ["weight_ih", "weight_hh"]),
        (nn.RNN(4, 4, nonlinearity="relu"), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.LSTM(4, 4, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
        (nn.Bilinear(4, 4, 4), ["weight"]),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), ["weight"]),
        (prune.identity(nn.Linear(4, 4), "weight"), ["weight_orig"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_matrices_of_known_layers_are_taken_and_vectors_are_not(layer, names):
    assert list(silently(layer).masks) == names


def test_another_module_by_the_name_of_conv1d_is_not_taken():
    layer = Conv1D(6, 4)
    layer.nf = 4  # it stores (outputs, inputs), or is something else
    with pytest.raises(fs.InputError, match=r"none of the model's 1 matrices matches \(1 of Conv1D\)"):
        static(layer)


def test_an_embedding_stays_dense_with_all_that_is_tied_to_it_whichever_comes_first():
    class Tied(nn.Module):
        def __init__(self, first):
            super().__init__()
            for name in first:
                self.add_module(name, nn.Embedding(9, 4) if name == "table" else nn.Linear(4, 9, bias=False))
            self.head.weight = self.table.weight
            self.between = nn.Linear(4, 4)

    for order in (("table", "head"), ("head", "table")):
        training = silently(Tied(order))
        assert list(training.masks) == ["between.weight"]
        assert training.report().overall_total == 16 + 36


def test_another_name_for_a_weight_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.register_parameter("alias", model[1].weight)
    assert list(silently(model).masks) == ["alias", "0.weight"]


# -- left dense, with a word ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parametrized",
    [old_weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
def test_what_a_parametrization_owns_stays_dense_with_a_word_and_is_counted(parametrized):
    model = nn.Sequential(nn.Linear(6, 4), parametrized(nn.Linear(4, 30)))
    with pytest.warns(UserWarning, match=r"83\.3% of the weights.* a parametrization owns '1\..*Name them in include="):
        training = static(model)
    assert list(training.masks) == ["0.weight"]
    assert training.report().overall_sparsity == 18 / 144
    assert model(torch.randn(3, 6)).isfinite().all()


def test_matrices_of_unknown_kinds_are_told_of_when_they_are_many():
    with pytest.warns(UserWarning, match=r"'1\.matrix', '2\.0' are of no kind that is made sparse by default"):
        training = static(nn.Sequential(nn.Linear(6, 4), Own(4, 6), nn.ParameterList([torch.zeros(4, 4)])))
    assert training.report().overall_total == 24 + 24 + 16


@pytest.mark.parametrize(
    "choice",
    [{"include": ["0"]}, {"include": ["0", "1"]}, {"exclude": ["1"]}],
    ids=str,
)
def test_who_names_layers_is_not_told_of_the_others(choice):
    silently(nn.Sequential(nn.Linear(6, 4), Own(4, 6)), **choice)


def test_few_matrices_of_unknown_kinds_or_frozen_ones_are_not_told_of():
    silently(nn.Sequential(nn.Linear(6, 40), Own(4, 6)))
    frozen = nn.Sequential(nn.Linear(6, 4), Own(4, 6))
    frozen[1].matrix.requires_grad_(False)
    silently(frozen)


def test_a_parametrization_that_keeps_zeros_is_taken_by_name():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(20, 30)))
    training = static(model, include=["*original"], sparsity=0.9)
    (mask,) = training.masks.values()
    assert torch.equal(model[0].weight != 0, mask)
    assert model(torch.randn(3, 20)).isfinite().all()


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (parametrizations.weight_norm(nn.Linear(4, 4)), "*original1"),
        (parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "*original1"),
        (parametrizations.weight_norm(nn.Linear(4, 4), dim=1), "*original1"),
        (old_weight_norm(nn.Linear(4, 4)), "weight_v"),
        (parametrizations.orthogonal(nn.Linear(4, 4)), "*original"),
        (parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric()), "*original"),
    ],
)
def test_a_parametrization_that_does_not_keep_zeros_is_refused_and_nothing_changes(layer, name):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(fs.InputError, match="zeros in it are not zeros of the weight") as caught:
        static(layer, include=[name])
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Sequential(nn.LazyLinear(4)), r"'0\.weight' has no shape yet: run one batch"),
        (nn.Sequential(nn.Linear(3, 4), nn.LazyConv2d(4, 3)), r"'1\.weight' has no shape yet"),
        (nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 0)), "the model has no matrix with entries"),
        (nn.BatchNorm1d(4), "the model has no matrix with entries"),
        (
            nn.Sequential(nn.Embedding(4, 4), Own(2, 2), old_weight_norm(nn.Linear(4, 4))),
            r"none of the model's 3 matrices matches \(1 of Embedding, 1 of Own, 1 owned by a parametrization\)",
        ),
    ],
)
def test_a_model_without_a_matrix_to_take_is_refused_with_what_there_is(model, told):
    with pytest.raises(fs.InputError, match=told):
        static(model)


def tied(change):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    change(model)
    return model


def through_data(model):
    model[2].weight.data = model[0].weight.data


def transposed(model):
    model[2].weight = nn.Parameter(model[0].weight.detach().T)


def partly(model):
    whole = torch.randn(6, 4)
    model[0].weight, model[2].weight = nn.Parameter(whole[:4]), nn.Parameter(whole[2:])


def columns(model):
    whole = torch.randn(4, 8)
    model[0].weight, model[2].weight = nn.Parameter(whole[:, :4]), nn.Parameter(whole[:, 3:7])


@pytest.mark.parametrize("change", [through_data, transposed, partly, columns])
def test_two_parameters_on_the_same_memory_are_refused_by_name(change):
    with pytest.raises(fs.InputError, match=r"'0\.weight' and '2\.weight' are two parameters on the same memory"):
        static(tied(change))
    assert list(silently(tied(change), include=["3"]).masks) == ["3.weight"]  # they are not masked


def side_by_side(model):
    whole = torch.randn(4, 8)
    model[0].weight, model[2].weight = nn.Parameter(whole[:, :4]), nn.Parameter(whole[:, 4:])
    flat = torch.randn(20)
    model[3].weight, model[3].bias = nn.Parameter(flat[:16].view(4, 4)), nn.Parameter(flat[16:])


def as_one(model):
    model[2].weight = model[0].weight


@pytest.mark.parametrize("change", [side_by_side, as_one])
def test_neighbours_in_one_storage_and_weights_tied_as_one_are_not(change):
    assert shared_storage(tied(change).named_parameters()) == []
    silently(tied(change))


def test_tensors_without_memory_share_none():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert shared_storage(model.named_parameters()) == []
    assert shared_storage([("a", torch.empty(0)), ("b", torch.empty(0))]) == []


# -- layers without entries -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch's of the layers, and ours of short runs
@pytest.mark.parametrize(
    "method", [name for name in fs.METHODS if name not in ("snip", "grasp", "wanda", "chex", "dense")]
)
def test_layers_without_entries_take_no_part(method):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 0), nn.Linear(0, 8), nn.Linear(8, 5))
    optimizer = sgd(model.parameters())
    training = fs.sparsify(model, optimizer, method, sparsity=0.5, steps=20)
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()
    assert list(training.masks) == ["0.weight", "1.weight", "4.weight"]
    assert training.report().overall_total == 152


# -- the way round of a weight ----------------------------------------------------------------------------------------

TURNED = [
    nn.ConvTranspose1d(8, 6, 3),
    nn.ConvTranspose2d(8, 6, 3),
    nn.ConvTranspose3d(8, 6, 2),
    nn.ConvTranspose2d(8, 6, 3, groups=2),
    nn.ConvTranspose2d(8, 8, 3, groups=8),
    Conv1D(6, 8),
]
STRAIGHT = [nn.Linear(8, 6), nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 3, groups=2), nn.Bilinear(8, 5, 6)]
EVERY = pytest.mark.parametrize("layer", [*TURNED, *STRAIGHT], ids=lambda layer: f"{type(layer).__name__}")


def sizes(layer):
    """Outputs and inputs of each output, by what the layer says of itself."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.out_channels, layer.in_channels // layer.groups
    return (layer.nf, layer.nx) if isinstance(layer, Conv1D) else (6, 8)


def sample(layer):
    torch.manual_seed(0)
    places = len(getattr(layer, "kernel_size", ()))
    x = torch.randn(2, 8, *[5] * places)
    return (x, torch.randn(2, 5)) if isinstance(layer, nn.Bilinear) else (x,)


@EVERY
def test_a_weight_is_turned_to_outputs_and_inputs_and_back(layer):
    groups = inputs_first(layer)
    turned = outputs_first(layer.weight, groups)
    assert turned.shape[:2] == sizes(layer)
    assert torch.equal(outputs_first(turned, groups), layer.weight)


@EVERY
def test_a_filter_is_what_one_output_is_made_from(layer):
    layer = copy.deepcopy(layer)
    groups = inputs_first(layer)
    masks = torch.ones_like(layer.weight, dtype=torch.bool)
    turned = outputs_first(masks, groups).clone()
    turned[3] = False
    mask = outputs_first(turned, groups)
    with torch.no_grad():
        layer.weight.mul_(mask)
        layer.bias.zero_()
        made = layer(*sample(layer)).transpose(0, 1).flatten(1)
    assert made.abs().sum(1).eq(0).nonzero().tolist() == [[3]]
    found = health({"weight": mask}, layer)
    assert (found.dead, found.filters) == (1, sizes(layer)[0])


@EVERY
def test_directions_have_the_length_of_each_filter(layer):
    groups = inputs_first(layer)
    ours, own = (outputs_first(t, groups).flatten(1) for t in (direction(layer, 0)["weight"], layer.weight.detach()))
    assert torch.allclose(ours.norm(dim=1), own.norm(dim=1))


@pytest.mark.parametrize("method", ["static", "rigl"])
@pytest.mark.parametrize("layer", [layer for layer in [*TURNED, *STRAIGHT] if sizes(layer)[1] % 4 == 0], ids=repr)
def test_patterns_lie_along_the_inputs_at_the_start_and_after_updates(layer, method):
    layer = copy.deepcopy(layer)
    optimizer = sgd(layer.parameters())
    options = {"every": 2} if method == "rigl" else {}
    training = fs.sparsify(layer, optimizer, method, sparsity=0.5, steps=10, pattern=(2, 4), **options)
    first = training.masks["weight"].clone()
    for _ in range(6):
        optimizer.zero_grad()
        layer(*sample(layer)).square().mean().backward()
        optimizer.step()
    turned = outputs_first(training.masks["weight"], inputs_first(layer))
    assert (turned.unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert torch.equal(first, training.masks["weight"]) == (method == "static")
    again = fs.sparsify(
        layer, sgd(layer.parameters()), "static", masks=training.masks, steps=10, pattern=(2, 4), seed=1
    )
    assert torch.equal(again.masks["weight"], training.masks["weight"])


def test_a_pattern_that_would_cross_groups_is_refused_with_the_inputs_of_one():
    with pytest.raises(fs.InputError, match="'weight' has 2 inputs, which pattern 2:4 does not divide"):
        static(nn.ConvTranspose2d(8, 8, 3, groups=4), sparsity=0.5, pattern=(2, 4))


@pytest.mark.parametrize("distribution", ["er", "erk", "uniform"])
def test_a_transposed_convolution_has_the_density_of_the_convolution_that_it_transposes(distribution):
    found = []
    for layer in (nn.ConvTranspose2d(12, 6, 3, groups=3), nn.Conv2d(6, 12, 3, groups=3)):
        model = nn.Sequential(layer, nn.Linear(30, 20))
        found.append([r.active for r in static(model, distribution=distribution).report()])
    assert found[0] == found[1]


def test_every_matrix_is_named_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(prunable(model)) == ["0.weight"]
