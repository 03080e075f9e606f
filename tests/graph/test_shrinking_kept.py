"""What torch.fx does not show of a model: hooks, tied memory, its mode, widths in its arithmetic, odd tensors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.export import load_small, save_dense, save_small, to_csr, with_zeros
from flatsparse.graph.groups import channel_groups
from flatsparse.graph.shrink import shrink
from tests.graph.test_shrinking import parameters, trained_norms


def chain(*middle, dtype=torch.float32):
    """Three convolutions, with something in the place of the first activation."""
    middle = middle or (nn.Tanh(),)
    return (
        nn.Sequential(nn.Conv2d(3, 6, 1), *middle, nn.Conv2d(6, 6, 1), nn.Tanh(), nn.Conv2d(6, 2, 1)).to(dtype).eval()
    )


class Twice(nn.Module):
    """One batch norm behind two convolutions."""

    def __init__(self, **options):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
        self.norm = nn.BatchNorm2d(6, **options)

    def forward(self, x):
        return self.c(F.relu(self.norm(self.b(F.relu(self.norm(self.a(x)))))))


class Inside(nn.Module):
    """A weight that belongs to a part of a layer of torch's as well."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Linear(6, 6), nn.Linear(6, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.attention.out_proj.weight = self.b.weight

    def forward(self, x):
        y = self.a(x).mean((2, 3))
        tokens = x.flatten(2).repeat(1, 2, 1).transpose(1, 2)
        return self.c(F.relu(self.b(F.relu(y)))) + self.attention(tokens, tokens, tokens)[0].mean((1, 2))[:, None]


class Modes(nn.Module):
    """Other channels are read in evaluation mode than in training."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.b(self.a(x) if self.training else self.a(x).flip(1))


class Widths(Modes):
    """A scale by the number of channels, as a Python number."""

    def forward(self, x):
        return self.b(self.a(x) / self.a.out_channels)


class Extra(Modes):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def hooked(place, pre):
    model = chain()
    if pre:
        model[place].register_forward_pre_hook(lambda module, inputs: inputs[0].flip(1))
    else:
        model[place].register_forward_hook(lambda module, inputs, output: output.flip(1))
    return model


def parametrized(place, name):
    model = chain(nn.BatchNorm2d(6), nn.ReLU())
    parametrize.register_parametrization(model[place], name, Double())
    return model


def tied_by_data(transpose=False):
    model = chain(nn.Tanh(), nn.Conv2d(6, 6, 1), nn.Tanh())
    model[4].weight.data = model[2].weight.data.transpose(0, 1) if transpose else model[2].weight.data
    return model


def flattened():
    """All parameters in one piece of memory, as torch.nn.utils.vector_to_parameters leaves them."""
    model = chain()
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    return model


MODELS = {  # with the number of groups that may lose channels
    "norm used twice": (Twice, 0),
    "norm without scale used twice": (lambda: Twice(affine=False), 0),
    "norm without statistics used twice": (lambda: Twice(track_running_stats=False), 0),
    "norm without tensors used twice": (lambda: Twice(affine=False, track_running_stats=False), 0),
    "norm without tensors": (lambda: chain(nn.BatchNorm2d(6, affine=False, track_running_stats=False), nn.ReLU()), 1),
    "tied to a part of a layer": (Inside, 0),
    "other channels in training": (lambda: Modes().train(), 0),
    "hook on an activation": (lambda: hooked(1, pre=False), 1),
    "hook on a layer": (lambda: hooked(2, pre=True), 0),
    "bias from a parametrization": (lambda: parametrized(0, "bias"), 1),
    "scale from a parametrization": (lambda: parametrized(1, "weight"), 1),
    "weight norm": (lambda: chain(nn.Tanh(), parametrizations.weight_norm(nn.Conv2d(6, 6, 1))), 1),
    "tied through data": (tied_by_data, 0),
    "tied through data, transposed": (lambda: tied_by_data(transpose=True), 0),
    "one piece of memory": (flattened, 2),
    "complex numbers": (lambda: chain(dtype=torch.cfloat), 0),
    "bfloat16": (lambda: chain(nn.BatchNorm2d(6), nn.ReLU(), dtype=torch.bfloat16), 2),
    "channels last": (lambda: chain(nn.BatchNorm2d(6), nn.ReLU()).to(memory_format=torch.channels_last), 2),
}


@torch.no_grad()
def outputs_under(model, masks, inputs):
    """Of the model itself while its weights are masked, so that all that shares their memory is as well."""
    named, training = dict(model.named_parameters(remove_duplicate=False)), model.training
    before = {name: p.clone() for name, p in named.items()}
    for name, mask in masks.items():
        named[name].mul_(mask)
    found = model.eval()(inputs)
    model.train(training)
    for name, p in named.items():
        p.copy_(before[name])
    return found


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_masked_models_and_channels_go_where_they_can(name, tmp_path):
    torch.manual_seed(0)
    make, count = MODELS[name]
    model = make()
    for norm in (m for m in model.modules() if type(m) is nn.BatchNorm2d and m.affine and m.track_running_stats):
        trained_norms(norm)
    first = next(model.parameters())
    inputs = torch.randn(2, 3, 4, 4).to(first.dtype)
    masks = {n: torch.rand(p.shape) < 0.6 for n, p in model.named_parameters() if p.ndim > 1 and "original" not in n}
    masks[next(iter(masks))][:3] = False
    if name.startswith("tied"):  # the other name has no mask of its own
        masks.pop("4.weight", None)
    wanted = outputs_under(model, masks, inputs)
    groups = channel_groups(model)
    assert sum(group.why_kept is None for group in groups) == count
    small = shrink(model, masks).eval()
    save_small(tmp_path / "small.safetensors", model, masks)
    loaded = load_small(tmp_path / "small.safetensors", copy.deepcopy(model))
    tolerance = 0.02 if first.dtype == torch.bfloat16 else 2e-5
    for made in (small, loaded, with_zeros(model, masks)):
        with torch.no_grad():
            assert (made(inputs) - wanted).abs().max() <= tolerance * wanted.abs().max()
    if count == 2:
        assert parameters(small) < parameters(model)


def test_a_dropout_that_goes_on_in_evaluation_keeps_what_would_be_folded():
    class Drops(nn.Module):
        def __init__(self, training):
            super().__init__()
            self.a, self.b, self.training_too = nn.Linear(3, 6), nn.Linear(6, 2), training

        def forward(self, x):
            return self.b(F.dropout(self.a(x), 0.5, self.training_too))

    masks = {"a.weight": torch.arange(6)[:, None].expand(6, 3) > 1}
    assert shrink(Drops(False), masks).a.out_features == 4
    assert shrink(Drops(True), masks).a.out_features == 6


def test_a_model_that_computes_with_widths_as_numbers_is_refused_in_a_line():
    model = Widths()
    assert shrink(model).a.out_channels == 6
    with pytest.raises(InputError, match="computes with the widths of its layers as numbers") as caught:
        shrink(model, {"b.weight": (torch.arange(6) > 1).view(1, 6, 1, 1).expand(2, 6, 1, 1)})
    assert "\n" not in str(caught.value)


def test_state_that_is_no_tensor_stays_and_is_written_nowhere(tmp_path):
    model = Extra().eval()
    masks = {"a.weight": torch.ones(6, 3, 1, 1, dtype=torch.bool)}
    assert shrink(model, masks).get_extra_state() == {"version": 1}
    for write in (save_small, save_dense, lambda file, *rest: fs.export.save_csr(file, to_csr(*rest))):
        with pytest.raises(InputError, match=r"'_extra_state' in the model's state is no tensor"):
            write(tmp_path / "it.safetensors", model, masks)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hold", [lambda m: prune.random_unstructured(m, "bias", 2), nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_torch_cannot_copy_gets_one_line(hold):
    model = chain()
    hold(model[2])
    masks = {"0.weight": torch.ones(6, 3, 1, 1, dtype=torch.bool)}
    for make in (shrink, with_zeros, to_csr):
        with pytest.raises(InputError, match=r"cannot be copied \(.*prune\.remove or remove_weight_norm") as caught:
            make(model, masks)
        assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize(("place", "name"), [(0, "bias"), (1, "weight"), (3, "weight")])
def test_a_layer_that_torch_prunes_is_kept(place, name):
    torch.manual_seed(0)
    model = chain(nn.BatchNorm2d(6), nn.ReLU())
    prune.random_unstructured(model[place], name, 2)
    inputs = torch.randn(2, 3, 4, 4)
    wanted = model(inputs)  # which leaves tensors that can be copied
    assert (
        channel_groups(model)[0].why_kept == f"{type(model[place]).__name__} '{place}' is not understood" or place == 0
    )
    assert (shrink(model)(inputs) - wanted).abs().max() < 1e-5
