"""An accelerated model trains as the masked one does, and is the same model to everybody else."""

import copy
import inspect
import io
import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize
from torch import nn
from torch.utils.checkpoint import checkpoint

import flatsparse as fs
from flatsparse.acceleration import measure, modules, products
from flatsparse.common.errors import InputError
from tests.acceleration.nets import always_sparse, compiled, net, without_compiler  # noqa: F401
from tests.helpers import adamw, assert_zero_outside, image_batch, image_loss, same, sgd, train_on_images

pytestmark = pytest.mark.usefixtures("compiled")

expected = pytest.mark.filterwarnings("ignore:accelerated layers run densely")
STEPS = 9
SHARPNESS = {
    "none": lambda base: base,
    "sam": lambda base: fs.SAM(base, rho=0.1),
    "s2sam": lambda base: fs.S2SAM(base, rho=0.1),
}
# Of a tensor's largest entry, after nine steps. Adam divides small gradients, and their rounding, by their size.
ROUNDING = {sgd: 1e-5, adamw: 1e-3}
LINEAR = ["7.weight", "9.weight", "11.weight"]
OPTIONS = {
    "dsr": {"threshold": 0.1, "drop_fraction": 0.3},
    "chex": {"explore": "removable"},
    "lth": {"drop_fraction": 0.5},
    "lrr": {"drop_fraction": 0.5},
}


def sparse_model(method="rigl", base=sgd, sharpness="none", **options):
    model = net()
    optimizer = SHARPNESS[sharpness](base(model.parameters()))
    options |= OPTIONS.get(method, {}) | (
        {"every": 3} if "every" in inspect.signature(fs.METHODS[method]).parameters else {}
    )
    if method in ("snip", "grasp", "wanda"):
        options |= {"batches": [image_batch(0, size=40)], "loss_fn": F.cross_entropy}
    if method == "grasp":
        options["per_class"] = 4
    if method != "chex":
        options.setdefault("sparsity", 0.0 if method == "dense" else 0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, optimizer, fs.sparsify(model, optimizer, method, steps=STEPS, **options)


def end(method, base, sharpness, accelerated, steps=STEPS):
    model, optimizer, training = sparse_model(method, base, sharpness)
    handle = fs.accelerate(model, training) if accelerated else None
    masks = []
    for step in range(1, steps + 1):
        if training.rounds > 1 and step in (4, 7):
            training.next_round()
        train_on_images(model, optimizer, step, start=step - 1)
        masks.append({name: mask.clone() for name, mask in training.masks.items()})
    training.unpack()
    assert_zero_outside(model, training, optimizer)
    return model, optimizer, masks, handle


@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("base", [sgd, adamw])
@pytest.mark.parametrize("method", fs.METHODS)
def test_a_run_ends_where_the_masked_one_ends(always_sparse, method, base, sharpness):  # noqa: F811
    plain, _, plain_masks, _ = end(method, base, sharpness, False)
    ours, _, masks, handle = end(method, base, sharpness, True)
    assert always_sparse or method == "dense"
    assert same(masks, plain_masks)
    assert same(list(ours.state_dict()), list(plain.state_dict()))
    for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        assert (a - b).abs().max() <= ROUNDING[base] * b.abs().max().clamp(min=1e-3)
    moved = {
        name for before, after in itertools.pairwise(masks) for name in LINEAR if not same(before[name], after[name])
    }
    assert moved or method in ("dense", "static", "snip", "grasp", "wanda", "chex", "chase", "dsr")
    if method not in ("dense", "lth", "lrr"):
        assert {handle.layers[name] for name in LINEAR} == {"sparse"}


def test_sparse_layers_see_no_dense_gradient_but_on_due_steps(always_sparse):  # noqa: F811
    model, optimizer, training = sparse_model("rigl")
    fs.accelerate(model, training)
    for step in range(1, STEPS + 1):
        image_loss(model, step).backward()
        weight, mask = model[9].weight, training.masks["9.weight"]
        due = bool(training.due(step))
        assert (weight.grad.shape == mask.shape) == (due or step == 1)  # packed from the first step on, but on due ones
        assert bool(weight.grad.shape == mask.shape and weight.grad[~mask].any()) == due
        optimizer.step()
        optimizer.zero_grad()
    assert any(training.due(step) for step in range(1, STEPS + 1))


def test_running_averages_of_dense_gradients_get_them_at_every_step(always_sparse):  # noqa: F811
    model, _, training = sparse_model("snfs")
    fs.accelerate(model, training)
    image_loss(model, 1).backward()
    assert model[9].weight.grad[~training.masks["9.weight"]].any()


@pytest.fixture
def pair(always_sparse):  # noqa: F811
    """A model in the middle of its training, and the same one accelerated."""
    plain, ours = (end("rigl", sgd, "none", accelerated, steps=4) for accelerated in (False, True))
    ours[0].load_state_dict(plain[0].state_dict())
    assert "sparse" in ours[3].layers.values()
    return plain[0].eval(), ours[0].eval(), ours[3]


def test_the_state_is_the_same_and_loads_both_ways(pair):
    plain, ours, _ = pair
    assert same(dict(ours.state_dict()), dict(plain.state_dict()))
    plain.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(plain)
    assert [type(m).__name__ for m in ours] == [type(m).__name__ for m in plain]
    assert all(isinstance(module, nn.Linear) for module in (ours[7], ours[9]))


def test_restoring_gives_the_model_back_bit_for_bit(pair):
    plain, ours, handle = pair
    x, _ = image_batch(0)
    handle.restore()
    assert type(ours[7]) is nn.Linear
    assert vars(ours[7]).keys() == vars(plain[7]).keys()
    assert same(ours(x), plain(x))
    assert set(handle.layers.values()) == {"dense: it was restored"}
    handle.restore()


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, by_pickle, by_torch], ids=["deep", "shallow", "pickle", "torch"]
)
def test_copies_are_plain_models(pair, copied):
    plain, ours, _ = pair
    twin = copied(ours) if copied is not copy.copy else nn.Sequential(*map(copy.copy, ours))
    x, _ = image_batch(0)
    assert type(twin[7]) is nn.Linear
    assert same(twin(x), plain(x))
    assert type(ours[7]) is modules.Linear
    with torch.no_grad():
        twin[9].weight.fill_(1.0)  # a plain model has no masks
        assert not same(twin(x), plain(x))


def test_checkpointed_layers_get_the_same_gradients(pair):
    _, ours, handle = pair
    x = torch.randn(8, 32)
    for reentrant in (False, True):
        gradients = []
        for call in (ours[7:], lambda x, r=reentrant: checkpoint(ours[7:], x, use_reentrant=r)):
            inputs = x.clone().requires_grad_()
            ours.zero_grad()
            call(inputs).square().sum().backward()
            gradients.append([inputs.grad, *(p.grad.clone() for p in ours[7:].parameters())])
        assert same(*gradients)
    assert handle.layers["9.weight"] == "sparse"


def test_autocast_falls_back_to_dense_and_says_so(pair):
    plain, ours, handle = pair
    x, _ = image_batch(0)
    with warnings.catch_warnings(record=True) as said, torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("always")
        assert same([ours(x), ours(x)], [plain(x), plain(x)])
    (said,) = (str(w.message) for w in said)
    assert said.startswith("accelerated layers run densely for now: autocast is on")
    assert "autocast" in handle.layers["9.weight"]
    ours(x)
    assert handle.layers["9.weight"] == "sparse"


@expected
def test_other_types_fall_back_to_dense(pair):
    plain, ours, handle = pair
    x, _ = image_batch(0)
    assert same(ours.double()(x.double()), plain.double()(x.double()))
    assert "float32" in handle.layers["9.weight"]


def test_transforms_and_recorders_see_torchs_own_operations(pair):
    plain, ours, _ = pair
    x, _ = image_batch(0)
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    each = torch.func.vmap(lambda one: torch.func.functional_call(ours, weights, (one[None],)))(x)
    torch.testing.assert_close(each.squeeze(1), plain(x))
    tangents = torch.func.jvp(ours, (x,), (torch.ones_like(x),)), torch.func.jvp(plain, (x,), (torch.ones_like(x),))
    assert same(*tangents)
    assert same(torch.jit.trace(ours, x)(x), plain(x))
    assert same(torch.fx.symbolic_trace(ours)(x), ours(x))
    counts = []
    for model in (plain, ours):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            model(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_a_compiled_model_is_dense(pair):
    plain, ours, handle = pair
    x, _ = image_batch(0)
    before = dict(handle.layers)
    torch.testing.assert_close(torch.compile(ours, backend="aot_eager", fullgraph=True)(x), plain(x))
    assert handle.layers == before


def test_a_layer_that_is_made_of_the_same_class_is_plain(pair):
    _, ours, handle = pair
    x = torch.randn(8, 32)
    twin = type(ours[7])(32, 4)
    assert same(twin(x), F.linear(x, twin.weight, twin.bias))
    nn.utils.parametrize.register_parametrization(ours[7], "bias", nn.Identity())
    made = type(ours[7])
    handle.restore()
    assert type(ours[7]) is made
    assert same(ours[7](x), F.linear(x, ours[7].weight, ours[7].bias))


@expected
def test_replaced_weights_and_inputs_of_another_kind_fall_back(pair):
    _, ours, handle = pair
    x = torch.randn(8, 32)
    ours[7].weight = nn.Parameter(torch.randn(37, 32))
    assert same(ours[7](x), F.linear(x, ours[7].weight, ours[7].bias))
    assert "replaced" in handle.layers["7.weight"]
    assert ours[9](torch.randn(0, 37)).shape == (0, 21)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ours[9](torch.randn(2, 36))


@expected
def test_once_masks_are_kept_no_longer_all_weights_count(always_sparse):  # noqa: F811
    model, _, training = sparse_model("rigl")
    handle = fs.accelerate(model, training)
    x = torch.randn(4, 32)
    model[7](x)
    assert handle.layers["7.weight"] == "sparse"
    training.detach()
    with torch.no_grad():
        model[7].weight.fill_(0.5)
    assert same(model[7](x), F.linear(x, model[7].weight, model[7].bias))
    assert "kept no longer" in handle.layers["7.weight"]


@expected
def test_a_perturbation_outside_the_masks_is_not_lost(always_sparse):  # noqa: F811
    model = net()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.5, mask_perturbation=False)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.8, steps=STEPS)
    handle = fs.accelerate(model, training)
    image_loss(model, 0)
    assert all(does.startswith("dense") for does in handle.layers.values())


def test_a_layer_that_is_too_dense_says_so():
    model = nn.Sequential(nn.Linear(40, 30))
    training = fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.3, steps=4)
    handle = fs.accelerate(model, training)
    assert handle.layers == {"0.weight": "dense: it was not called yet"}
    model(torch.randn(3, 40))
    assert handle.layers == {"0.weight": "dense: 30% of its weights are zero, too few to pay"}


def test_what_is_no_sparse_model_is_refused():
    model, _, training = sparse_model("static")
    with pytest.raises(InputError, match=r"\A.*accelerate got Sequential and NoneType.*\Z"):
        fs.accelerate(model, None)
    with pytest.raises(InputError, match=r"\A.*no weight of this model.*\Z"):
        fs.accelerate(net(), training)
    fs.accelerate(model, training)
    with pytest.raises(InputError, match=r"\A.*accelerated already: call restore.*\Z"):
        fs.accelerate(model, training)


def test_whether_sparse_is_faster_is_measured_once_for_each_kind_of_layer(monkeypatch):
    measured = []
    monkeypatch.setattr(
        measure, "_ratio", lambda dense, sparse, own=measure._ratio: (measured.append(1), own(dense, sparse))[-1]
    )
    measure._known.clear()
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))
    training = fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.97, steps=4, layers="all")
    handle = fs.accelerate(model, training)
    for _ in range(3):
        model(torch.randn(256, 512, requires_grad=True))
    assert handle.layers["0.weight"] == handle.layers["2.weight"] == "sparse"
    assert handle.layers["4.weight"].startswith("dense")
    assert len(measured) <= 2
    with torch.no_grad():
        model(torch.randn(256, 512))  # a forward alone is another kind
    assert 2 <= len(measured) <= 4


def test_without_a_compiler_torchs_sparse_rows_serve_and_it_is_said_once(always_sparse, without_compiler):  # noqa: F811
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, _, masks, handle = end("rigl", sgd, "none", True)
    assert handle.layers["9.weight"] == "sparse"
    said = [str(w.message) for w in caught if "cannot be built here" in str(w.message)]
    assert len(said) == 1
    plain, _, plain_masks, _ = end("rigl", sgd, "none", False)
    assert same(masks, plain_masks)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    assert not products.is_compiled()


def test_a_layer_takes_its_input_by_name_and_a_bias_of_any_layout(always_sparse):  # noqa: F811
    model = nn.Linear(40, 30)
    plain = copy.deepcopy(model)
    training = fs.sparsify(model, sgd(model.parameters()), "static", sparsity=0.9, steps=9)
    plain.weight.data = model.weight.detach().clone()
    accelerated, x = fs.accelerate(model, training), torch.randn(16, 40)
    assert torch.allclose(model(input=x), plain(x), atol=1e-6)
    assert accelerated.layers == {"weight": "sparse"}
    model.bias = plain.bias = nn.Parameter(torch.arange(60.0)[::2])
    with pytest.warns(UserWarning, match="its bias is not laid out"):
        assert torch.allclose(model(x), plain(x), atol=1e-5)
