"""Operations of layers with several matrices, or with products of no matrix, are counted matrix by matrix."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

import flatsparse as fs
import flatsparse.measure.estimate as estimating
from flatsparse.measure import flops
from flatsparse.measure.estimate import estimate
from flatsparse.measure.flops import cost
from flatsparse.methods import METHODS
from flatsparse.schedules import AnyOf
from flatsparse.sparse.layers import prunable
from tests.helpers import tiny_net

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])])
TOKENS = 7  # of one sample


class First(nn.Module):
    """What a recurrent layer gives, without its state."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def recurrent():
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        for options in (
            {},
            {"batch_first": True},
            {"bidirectional": True},
            {"num_layers": 2, "bidirectional": True, "bias": False},
            {"proj_size": 3, "num_layers": 2},
        ):
            if kind is nn.LSTM or "proj_size" not in options:
                yield pytest.param(kind, options, id=f"{kind.__name__}-{'-'.join(options)}")


@DEVICES
@pytest.mark.parametrize(("kind", "options"), [*recurrent()])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_each_matrix_of_a_recurrent_layer_is_multiplied_once_a_token(kind, options, device):
    net = First(kind(5, 8, **options)).to(device)
    found = cost(
        net, torch.ones(TOKENS, TOKENS, 5, device=device)
    )  # as many samples as steps, so either may come first
    assert found.layers == {name: 2 * TOKENS * p.numel() for name, (p, _) in prunable(net).items()}
    assert found.other == 0


@DEVICES
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_a_cell_is_one_step(kind, device):
    net = nn.Sequential(kind(5, 8)).to(device)
    found = cost(net, torch.ones(3, 5, device=device))
    assert found.layers == {name: 2 * p.numel() for name, (p, _) in prunable(net).items()}


class Attention(nn.Module):
    def __init__(self, weights=False, **options):
        super().__init__()
        self.weights, self.options = weights, options
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        keys, values = (x.new_ones(len(x), TOKENS, self.options.get(name, 8)) for name in ("kdim", "vdim"))
        return self.inner(x, keys, values, need_weights=self.weights)[0]


@DEVICES
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"kdim": 6, "vdim": 10}, {"add_zero_attn": True}, {"add_bias_kv": True}], ids=str
)
def test_attention_has_its_projections_and_two_products(options, weights, device):
    net = Attention(weights, **options).to(device)
    found = cost(net, torch.ones(2, 5, 8, device=device))  # 5 queries
    keys = TOKENS + bool({"add_zero_attn", "add_bias_kv"} & set(options))
    query, out = 2 * 5 * 64, 2 * 5 * 64
    inner = 2 * TOKENS * 8 * (options.get("kdim", 8) + options.get("vdim", 8))
    assert found.other == 2 * 2 * 5 * keys * 8
    assert sum(found.layers.values()) == query + inner + out
    assert found.layers["inner.out_proj.weight"] == out


@DEVICES
@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_its_two_products_on_every_device(device, causal):
    class Own(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x[..., :5, :], x[..., :5, :3], is_causal=causal)

    assert cost(Own(), torch.ones(2, 4, 6, 8, device=device)).other == 2 * 4 * 6 * 5 * (8 + 3)


@DEVICES
def test_other_products_of_matrices(device):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(4, 4, 6)
            self.transposed = nn.ConvTranspose1d(4, 6, 3, groups=2)
            self.queries = nn.Parameter(torch.ones(9, 4))
            self.table = nn.Embedding(10, 4)
            self.linear = nn.Linear(4, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            made = self.bilinear(x, x), self.transposed(x.unsqueeze(2)), torch.mv(self.linear.weight, x[0])
            looked = self.table(torch.zeros(len(x), dtype=torch.long, device=x.device))
            return made, self.head(looked), self.linear(self.queries.expand(len(x), 9, 4))

    with torch.device(device):
        net, inputs = Several(), torch.ones(2, 4)
    found = cost(net, inputs)
    assert found.layers == {
        "queries": 0,
        "bilinear.weight": 2 * 96,
        "transposed.weight": 2 * 36,
        "table.weight": 2 * 40,
        "linear.weight": 2 * 9 * 16 + 16,
    }
    assert found.other == 0


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(
    "changed",
    [
        lambda layer: layer,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        nn.utils.weight_norm,
        lambda layer: torch.compile(layer, backend="eager"),
    ],
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_products_of_a_weight_that_is_made_of_a_matrix_are_the_matrixs(changed, precision):
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        found = cost(nn.Sequential(changed(nn.Linear(4, 6)), nn.ReLU()), torch.ones(3, 4))
    assert (list(found.layers.values()), found.other) == ([48], 0)


def test_matrices_in_one_storage_are_told_apart():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    flat = torch.randn(48)
    net[0].weight, net[1].weight = nn.Parameter(flat[:24].view(6, 4)), nn.Parameter(flat[24:].view(4, 6))
    assert cost(net, torch.ones(3, 4)).layers == {
        "0.weight": 48,
        "1.weight": 48,
    }


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_convolutional_nets_cost_what_torch_counts(name, context):
    with torch.device("meta"):
        model, inputs = fs.models.MODELS[name](), torch.zeros(2, 3, 32, 32)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(inputs)
    with context():
        assert 2 * cost(model, inputs).dense == counter.get_total_flops()


def test_a_transformer_is_counted_as_it_is_trained():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    found = cost(nn.TransformerEncoder(layer, 2), torch.ones(3, TOKENS, 16))
    assert sum(found.layers.values()) == 2 * 2 * TOKENS * (4 * 256 + 2 * 16 * 32)
    assert found.other == 2 * 2 * 2 * TOKENS * TOKENS * 16


# -- what cannot be counted -------------------------------------------------------------------------------------------


class Unread(nn.Module):
    """A layer that the forward pass goes around, and an operation of somebody else's."""

    def __init__(self):
        super().__init__()
        self.linear, self.aside, self.table = nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(4, 4)
        self.gate = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return torch.ops.flatsparse_tests.twice(self.linear(x) * self.gate.sum(0))


@torch.library.custom_op("flatsparse_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_what_cannot_be_counted_is_named_and_costs_nothing():
    with pytest.warns(UserWarning, match="not counted|can be counted") as caught:
        found = cost(Unread(), torch.ones(2, 4))
    assert found.layers == {"gate": 0, "linear.weight": 32, "aside.weight": 0, "table.weight": 0}
    told = [str(warning.message) for warning in caught]
    assert len(told) == 2
    assert told[0].startswith("no product that can be counted reads aside.weight in a forward pass")
    assert "flatsparse_tests.twice are not counted" in told[1]


def test_an_estimate_names_what_was_chosen_and_cannot_be_counted():
    choice = {"sparsity": 0.5, "steps": 10, "include": ["gate", "linear", "table"]}
    with pytest.warns(UserWarning, match="reads gate in a forward pass"):
        found = estimate(Unread(), torch.ones(2, 4), "static", **choice, distribution="uniform")
    assert (found.inference, found.inference_dense) == (16.0, 32)
    assert [layer.name for layer in found.layers] == ["gate", "linear.weight", "aside.weight", "table.weight"]
    assert found.overall_sparsity == 24 / 64


def test_an_estimate_has_the_overall_sparsity_of_the_training():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    found = estimate(net, torch.zeros(1, 3, dtype=torch.long), "static", sparsity=0.5, steps=10)
    training = fs.sparsify(net, torch.optim.SGD(net.parameters()), "static", sparsity=0.5, steps=10)
    assert found.overall_sparsity == training.report().overall_sparsity == 8 / 52


def test_an_estimate_lays_patterns_along_the_inputs():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2))  # 2:4 divides the inputs, not the outputs
    choice = {"sparsity": 0.5, "steps": 10, "pattern": (2, 4), "include": ["1"]}
    assert estimate(net, torch.zeros(1, 3, 2, 2), "static", **choice).sparsity == 0.5


# -- runs of any length -----------------------------------------------------------------------------------------------


def step_by_step(run, steps):
    """An estimate's walk, a step at a time."""
    for step in range(run.steps + 1, run.steps + steps + 1):
        due = [rule for rule in run.plan.rules if step > 1 and rule.when(step)]
        run.spent += flops.step_flops(run.forward, run.cost.dense, run.passes, due, run.plan.momentum is not None)
        for rule in due:
            run.expected.active = rule.counts(run.expected, step)
    run.steps += steps


def told(method, steps):
    sparsity = {"chex": None, "dense": 0.0}.get(method, 0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimate(tiny_net(), torch.zeros(1, 1, 8, 8), method, sparsity=sparsity, steps=steps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [3, 450])
def test_an_estimate_is_that_of_a_walk_step_by_step(method, steps, monkeypatch):
    ours = told(method, steps)
    monkeypatch.setattr(estimating._Walk, "take", step_by_step)
    theirs = told(method, steps)
    assert ours.step == pytest.approx(theirs.step, rel=1e-12)
    assert (ours.layers, ours.inference) == (theirs.layers, theirs.inference)


@pytest.mark.parametrize("method", ["gmp", "mest-ems", "chase"])
def test_an_estimate_of_more_updates_than_are_walked_is_close(method, monkeypatch):
    exact = told(method, 100_000)
    monkeypatch.setattr(estimating, "WALKED", 30)
    near = told(method, 100_000)
    assert near.step == pytest.approx(exact.step, rel=0.01)
    assert near.inference == exact.inference


@pytest.mark.parametrize("method", [name for name in METHODS if name != "chase"])
def test_a_run_of_any_length_is_estimated(method, monkeypatch):
    monkeypatch.setattr(estimating, "WALKED", 100)
    long = told(method, 10**12)
    assert long.steps % 10**12 == 0
    assert long.step == pytest.approx(told(method, 10**5).step, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_no_plan_lists_the_steps_of_a_long_run(method):
    plan = fs.methods.as_method(method, {}).plan({"dense": 0.0}.get(method, 0.8), 10**15)
    for rule in plan.rules:
        parts = rule.when.timetables if isinstance(rule.when, AnyOf) else (rule.when,)
        assert sum(len(part.ranges) for part in parts) < 100
        assert math.isfinite(sum(r[-1] for part in parts for r in part.ranges))
