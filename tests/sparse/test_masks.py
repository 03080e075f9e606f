"""Which weights are masked, under which names, and what zeroing does."""

import math

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.names import plain_names
from flatsparse.sparse.masked_weight import MaskedWeight, zero_outside
from flatsparse.sparse.masks import Masks
from tests.helpers import is_plus_zero, tiny_net


def names(model, **choice):
    return [w.name for w in Masks.of(model, model.parameters(), **choice)]


class Mixed(nn.Module):
    """Layers of prunable and of other kinds, with a bare matrix between them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.matrix = nn.Parameter(torch.zeros(3, 3))
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm((2, 4))
        self.rnn = nn.GRU(4, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.linear = nn.Linear(4, 2)


PRUNABLE = [
    *("attention.in_proj_weight", "attention.out_proj.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"),
    *("conv.weight", "linear.weight"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


def checkered(shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    """A masked weight whose every second entry is live."""
    weight = nn.Parameter(torch.randn(shape).to(dtype).contiguous(memory_format=memory_format))
    w = MaskedWeight("layer", weight, index=0)
    w.set_mask((torch.arange(weight.numel()) % 2 == 0).view(shape))
    return w


# -- zeroing ----------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_zeroing_leaves_plus_zero_outside_and_every_bit_inside(dtype, memory_format):
    w = checkered((4, 3, 2, 2), dtype, memory_format)
    special = torch.tensor([-0.0, math.inf, -math.inf, math.nan, -1.5, 1e-30], dtype=dtype)
    values = special.repeat_interleave(2).repeat(4).view(4, 3, 2, 2).contiguous(memory_format=memory_format)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    before = values.clone()
    assert w.zero_outside(values) is values
    assert is_plus_zero(values[~w.mask])
    assert torch.equal(values[w.mask].view(bits), before[w.mask].view(bits))
    assert values.is_contiguous(memory_format=memory_format)


def test_zeroing_reaches_state_of_another_width():
    w = checkered((4, 4), torch.bfloat16)
    values = torch.full((4, 4), -math.inf)
    assert is_plus_zero(w.zero_outside(values)[~w.mask])
    assert (values[w.mask] == -math.inf).all()


def test_zeroing_reaches_whole_numbers():
    w = checkered((4, 4))
    assert torch.equal(w.zero_outside(torch.full((4, 4), 7, dtype=torch.int32)), w.mask.int() * 7)


def test_zeroing_a_tensor_that_is_not_contiguous():
    w = checkered((4, 6))
    values = torch.full((6, 4), math.nan).t()
    assert torch.equal(w.zero_outside(values).isnan(), w.mask)


def test_zeroing_many_at_once_is_zeroing_each():
    weights = [checkered((4, 6)) for _ in range(4)]
    weights[2].set_mask(torch.ones(4, 6, dtype=torch.bool))
    weights[3].set_mask(torch.zeros(4, 6, dtype=torch.bool))
    wild = torch.full((4, 6), math.nan)
    tensors = [wild.clone(), None, wild.clone(), -wild]
    zero_outside(weights, tensors)
    assert is_plus_zero(tensors[0][~weights[0].mask])
    assert torch.equal(tensors[0].isnan(), weights[0].mask)
    assert tensors[2].isnan().all()
    assert is_plus_zero(tensors[3])


def test_zeroing_follows_the_contents_of_the_mask_and_the_type_of_the_tensor():
    w = checkered((4, 6))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for mask in (w.mask.clone(), ~w.mask):
            w.mask.copy_(mask)  # not by set_mask
            values = torch.full((4, 6), math.inf, dtype=dtype)
            assert torch.equal(w.zero_outside(values).isinf(), mask)


def test_a_mask_changes_its_contents_and_never_its_identity():
    w = checkered((4, 4))
    mask, address = w.mask, w.mask.data_ptr()
    w.set_mask(~mask)
    w.set_mask(torch.arange(16).view(4, 4) < 5)
    assert w.mask is mask
    assert mask.data_ptr() == address
    assert (w.active, int(mask.sum())) == (5, 5)


def test_reapplying_zeroes_what_was_written_since_the_last_record():
    w = checkered((4, 4))
    w.reapply()
    assert is_plus_zero(w.weight[~w.mask])
    with torch.no_grad():
        w.weight.fill_(3.0)
    w.reapply()
    assert torch.equal(w.weight.detach(), w.mask * 3.0)


def test_applying_zeroes_the_weight_and_no_gradient():
    model = tiny_net()
    masks = Masks.of(model, model.parameters())
    w = masks[0]
    w.set_mask(torch.zeros_like(w.mask))
    w.weight.grad = torch.ones_like(w.weight)
    w.apply()
    assert is_plus_zero(w.weight)
    assert w.weight.grad.all()  # a rule may yet want it dense


def test_the_dense_gradient_counts_what_is_not_finite_as_zero():
    w = checkered((2, 2))
    assert is_plus_zero(w.grad)
    w.dense_grad = torch.tensor([[math.nan, 2.0], [-math.inf, math.inf]])
    assert w.grad.tolist() == [[0, 2], [0, 0]]


# -- which weights ----------------------------------------------------------------------------------------------------


def test_matrices_of_prunable_layers_are_masked_in_the_order_of_named_parameters():
    assert names(Mixed()) == PRUNABLE


def test_biases_embeddings_norms_and_bare_matrices_are_not_prunable_by_default():
    assert not {"embedding.weight", "norm.weight", "matrix"} & set(names(Mixed()))


def test_include_may_name_any_matrix():
    model = Mixed()
    wanted = {"embedding.weight", "norm.weight", "matrix"}
    assert names(model, include=["embedding.*", "norm.weight", "matrix"]) == [
        n for n, _ in model.named_parameters() if n in wanted
    ]


@pytest.mark.parametrize("pattern", ["conv", "conv.weight", "conv*", "c?nv.*"])
def test_a_pattern_matches_a_layer_or_a_parameter(pattern):
    assert names(Mixed(), include=[pattern]) == ["conv.weight"]
    assert names(Mixed(), exclude=[pattern]) == [name for name in PRUNABLE if name != "conv.weight"]


def test_a_lone_pattern_may_be_a_string():
    assert names(Mixed(), include="conv") == ["conv.weight"]


def test_exclude_wins_over_include():
    assert names(Mixed(), include=["rnn", "conv"], exclude=["*_hh_*"]) == ["rnn.weight_ih_l0", "conv.weight"]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_without_a_match_names_the_nearest_layer(argument):
    with pytest.raises(fs.InputError, match=rf"{argument} pattern 'covn' matches no layer \(nearest: conv"):
        names(Mixed(), **{argument: ["covn"]})


def test_only_what_the_optimizer_trains_is_masked():
    model = Mixed()
    model.conv.weight.requires_grad_(False)
    held = [model.conv.weight, model.linear.weight, model.linear.bias]
    assert [w.name for w in Masks.of(model, held)] == ["linear.weight"]


def test_nothing_left_to_mask_is_an_error():
    with pytest.raises(fs.InputError, match="no weight to make sparse"):
        names(Mixed(), include=["conv"], exclude=["conv"])


def test_a_weight_that_two_layers_share_has_one_mask():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert names(model) == ["0.weight"]


def test_a_linear_layer_tied_to_an_embedding_can_be_in_a_sparse_model():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7))
    model[2].weight = model[0].weight
    assert "1.weight" in names(model)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_drop_what_wrappers_put_before_them(wrapper):
    assert plain_names([f"{wrapper}layer.weight", f"{wrapper}layer.bias"]) == ["layer.weight", "layer.bias"]


def test_a_module_of_the_models_own_keeps_its_name():
    assert plain_names(["fc.weight", "module.fc.weight"]) == ["fc.weight", "module.fc.weight"]


def test_a_compiled_model_and_a_compiled_child_have_the_names_of_the_plain_one():
    model = tiny_net()
    plain = names(model)
    assert names(torch.compile(model, backend="eager")) == plain
    model[3] = torch.compile(model[3], backend="eager")
    assert names(model) == plain
    assert names(nn.DataParallel(model)) == plain


# -- counts -----------------------------------------------------------------------------------------------------------


def test_overall_counts_the_layers_left_out_and_prunable_does_not():
    model = tiny_net()
    training = fs.sparsify(model, torch.optim.SGD(model.parameters()), "static", sparsity=0.5, steps=9, exclude=["0"])
    report = training.report()
    assert (report.total, report.overall_total, report.active) == (592, 646, 296)
    assert (report.sparsity, report.overall_sparsity) == (0.5, 296 / 646)


@pytest.mark.parametrize(("sparsity", "live"), [(0.0, 646), (0.9, 65), (0.99, 6)])
def test_the_budget_is_exact_to_the_weight(sparsity, live):
    model = tiny_net()
    assert Masks.of(model, model.parameters()).budget(sparsity) == live
