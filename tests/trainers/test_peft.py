"""Masked low-rank adapters: what is trained, evaluated and merged is one function, and zero outside the masks."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import flatsparse as fs
from tests.helpers import same

pytest.importorskip("peft", reason="adapters are PEFT's")

from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers.pytorch_utils import Conv1D

from tests.trainers.pruned_lora import (
    KINDS,
    adapted,
    adapters,
    evaluated,
    filled,
    logits,
    loss_at,
    matrices,
    pruned,
    train,
)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def masked(kind="llama", **options):
    """A pruned model with masked adapters, and the masks of all that is pruned."""
    model, masks = pruned(kind)
    model = adapted(model, **options)
    fs.mask_adapters(model)
    return model, masks


def around(layer, mask, **options):
    """A model of one layer, zero outside a mask, with a masked adapter."""
    with torch.no_grad():
        layer.weight[~mask] = 0
    turned = {"fan_in_fan_out": isinstance(layer, Conv1D)}
    config = LoraConfig(target_modules=["0"], init_lora_weights=False, **turned, **options)
    model = get_peft_model(nn.Sequential(layer), config)
    fs.mask_adapters(model, {"0.weight": mask})
    return model


def factors(model, adapter="default"):
    """A and B of a model of one layer."""
    layer = model.base_model.model[0]
    return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight


class TestOneLayer:
    """Against the plain form, W + M∘(s·BA), for layers of any shape."""

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_a_layer_is_what_it_is_merged_into(self, data):
        inputs, outputs, rank, alpha = (data.draw(st.integers(1, 9)) for _ in range(4))
        turned, bias = data.draw(st.booleans()), data.draw(st.booleans())
        dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
        torch.manual_seed(data.draw(st.integers(0, 2**20)))
        layer = Conv1D(outputs, inputs) if turned else nn.Linear(inputs, outputs, bias=bias)
        layer = layer.to(dtype)
        mask = torch.rand(layer.weight.shape) < data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
        mask[0, 0] = True  # masks leave something active
        model = around(layer, mask, r=rank, lora_alpha=alpha)
        before, x = layer.weight.detach().clone(), torch.randn(5, inputs, dtype=dtype)

        a, b = factors(model)
        update = (alpha / rank * (b @ a)).T if turned else alpha / rank * (b @ a)
        plain = (before + torch.where(mask, update, 0)).to(dtype)
        expected = F.linear(x, plain.T if turned else plain, layer.bias)
        adapter_output = model(x)
        close = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(adapter_output, expected, **close)

        seed = torch.randn_like(expected)
        gradients = torch.autograd.grad(adapter_output, [a, b], seed)
        wanted = torch.autograd.grad(expected, [a, b], seed)
        torch.testing.assert_close(gradients, wanted, **close)

        model.merge_adapter()
        assert not layer.weight[~mask].any()
        assert model(x).equal(adapter_output)
        model.unmerge_adapter()
        assert not layer.weight[~mask].any()
        torch.testing.assert_close(layer.weight.detach(), before, **close)
        merged = model.merge_and_unload()
        assert type(merged[0]) is type(layer)
        torch.testing.assert_close(merged(x), adapter_output, **close)
        assert not merged[0].weight[~mask].any()

    @settings(deadline=None, max_examples=40)
    @given(st.data())
    def test_a_convolution_is_what_it_is_merged_into(self, data):
        ndim, size, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        inputs, outputs, rank = (data.draw(st.integers(1, 4)) for _ in range(3))
        torch.manual_seed(data.draw(st.integers(0, 2**20)))
        layer = CONVOLUTIONS[ndim](inputs, outputs, size, stride, padding=data.draw(st.integers(0, 1)))
        mask = torch.rand(layer.weight.shape) < 0.6
        mask.view(-1)[0] = True
        x = torch.randn(2, inputs, *[4] * ndim)
        model = around(layer, mask, r=rank, lora_alpha=2 * rank)
        before, (a, b) = layer.weight.detach().clone(), factors(model)
        product = torch.einsum("or,ri...->oi...", b.flatten(1), a)
        plain = before + torch.where(mask, 2 * product, 0)
        expected = getattr(F, f"conv{ndim}d")(x, plain, layer.bias, layer.stride, layer.padding)
        adapter_output = model(x)
        torch.testing.assert_close(adapter_output, expected, rtol=1e-4, atol=1e-5)
        merged = model.merge_and_unload()
        assert merged(x).equal(adapter_output)
        assert not merged[0].weight[~mask].any()

    def test_dropout_falls_on_the_inputs_of_the_update_alone(self):
        layer, mask = nn.Linear(6, 5), torch.rand(5, 6) < 0.5
        model, x = around(layer, mask, r=2, lora_alpha=2, lora_dropout=0.5), torch.randn(7, 6)
        a, b = factors(model)
        torch.manual_seed(3)
        output = model(x)
        torch.manual_seed(3)
        expected = layer(x) + F.linear(F.dropout(x, 0.5), torch.where(mask, b @ a, 0))
        torch.testing.assert_close(output, expected)
        output = model.eval()(x)
        assert not torch.allclose(output, expected)
        assert model.merge_and_unload()(x).equal(output)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_a_bias_of_the_adapter_is_merged_too(self, dtype):
        layer, mask = nn.Linear(6, 5, dtype=dtype), torch.rand(5, 6) < 0.5
        model, x = around(layer, mask, r=2, lora_bias=True), torch.randn(7, 6, dtype=dtype)
        nn.init.normal_(model.base_model.model[0].lora_B["default"].bias)
        before, output = layer.bias.detach().clone(), model(x)
        assert model.merge_and_unload()(x).equal(output)
        assert not layer.bias.equal(before)

    def test_what_is_not_finite_outside_the_mask_stays_there(self):
        layer, mask = nn.Linear(2, 2), torch.tensor([[True, True], [False, False]])
        model = around(layer, mask, r=1)
        a, b = factors(model)
        with torch.no_grad():
            a.fill_(1e30), b.copy_(torch.tensor([[1e-30], [1e30]]))  # whose product is infinite
        output = model(torch.ones(1, 2))
        output.sum().backward()
        assert output.isfinite().all()
        assert b.grad.isfinite().all()
        assert a.grad.isfinite().all()

    def test_hooks_of_the_base_layer_run(self):
        layer, seen = nn.Linear(3, 3), []
        model = around(layer, torch.eye(3, dtype=torch.bool), r=1)
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        x = torch.randn(2, 3)
        model(x)
        assert len(seen) == 1
        assert seen[0].equal(x)

    def test_autograd_keeps_one_matrix_as_large_as_the_weight(self):
        layer, kept = nn.Linear(40, 30), []
        model = around(layer, torch.rand(30, 40) < 0.5, r=2)
        x = torch.randn(5, 40, requires_grad=True)

        def pack(tensor):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        own = {layer.weight.data_ptr(), model.base_model.model[0].update_mask.data_ptr()}
        large = {t.data_ptr() for t in kept if t.numel() >= layer.weight.numel()} - own
        assert len(large) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.1}], ids=str)
def test_a_trained_model_is_merged_without_a_change(kind, options):
    model, masks = masked(kind, **options)
    before = evaluated(model)
    train(model, 30)
    assert evaluated(model) < before
    output = logits(model)
    merged = model.merge_and_unload()
    assert logits(merged).equal(output)
    assert filled(merged, masks) == 0
    assert not any(hasattr(module, "update_mask") for module in merged.modules())


def test_a_model_in_bfloat16_is_merged_without_a_change():
    model, masks = pruned()
    model = adapted(model.bfloat16())
    fs.mask_adapters(model)
    output, twin = logits(model), copy.deepcopy(model)
    merged, safely = model.merge_and_unload(), twin.merge_and_unload(safe_merge=True)
    assert logits(merged).equal(output)
    for one, other in zip(merged.parameters(), safely.parameters(), strict=True):  # which rounds the update first
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-9)
    assert filled(merged, masks) == filled(safely, masks) == 0


def test_under_autocast_the_model_is_the_merged_one():
    model, _ = masked()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = logits(model)
    merged = model.merge_and_unload()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits(merged).equal(output)


class TestAdapters:
    """What PEFT does with adapters works as before."""

    @pytest.fixture
    def two(self):
        model, masks = masked()
        model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))  # masked like the first
        return model, masks

    def test_switching(self, two):
        model, masks = two
        first = logits(model)
        model.set_adapter("second")
        second = logits(model)
        assert not torch.allclose(first, second, atol=1e-3)
        model.set_adapter("default")
        assert logits(model).equal(first)
        model.set_adapter("second")
        merged = model.merge_and_unload()
        assert logits(merged).equal(second)
        assert filled(merged, masks) == 0

    def test_both_at_once(self, two):
        model, masks = two
        model.base_model.set_adapter(["default", "second"])
        both = logits(model)
        merged = model.merge_and_unload(adapter_names=["default", "second"])
        assert logits(merged).equal(both)
        assert filled(merged, masks) == 0

    def test_a_weighted_sum(self, two):
        model, masks = two
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mean", combination_type="linear")
        model.set_adapter("mean")
        output = logits(model)
        merged = model.merge_and_unload()
        assert logits(merged).equal(output)
        assert filled(merged, masks) == 0

    def test_a_deleted_adapter_leaves_the_other(self, two):
        model, _ = two
        first = logits(model)
        model.delete_adapter("second")
        assert logits(model).equal(first)

    @pytest.mark.parametrize("merge", [False, True])
    def test_disabling_gives_the_base(self, merge):
        base, masks = pruned()
        model = adapted(base)
        fs.mask_adapters(model)
        if merge:
            model.merge_adapter()
        with model.disable_adapter():
            torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=1e-5 if merge else 0)
        assert not torch.allclose(logits(model), logits(base), atol=1e-3)
        assert filled(model.unload(), masks) == 0

    def test_merging_and_unmerging_again_and_again(self):
        model, masks = masked()
        output, layers = logits(model), {name.replace(".weight", ".base_layer.weight"): m for name, m in masks.items()}
        for _ in range(3):
            model.merge_adapter()
            torch.testing.assert_close(logits(model), output, rtol=0, atol=1e-5)
            fs.mask_adapters(model)  # as they are
            model.unmerge_adapter()
            torch.testing.assert_close(logits(model), output, rtol=0, atol=1e-5)
        inner = dict(model.get_base_model().named_parameters())
        assert not any(inner[n][~m].any() for n, m in layers.items() if n in inner)

    def test_saved_adapters_are_masked_again_when_they_are_loaded(self, tmp_path):
        base, masks = pruned()
        model = adapted(base)
        fs.mask_adapters(model)
        output = logits(train(model, 10))
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
        assert not torch.allclose(logits(loaded), output, atol=1e-3)  # not masked yet: another function
        fs.mask_adapters(loaded)
        assert logits(loaded).equal(output)
        assert filled(loaded.merge_and_unload(), masks) == 0

    def test_an_adapter_of_other_layers_needs_a_second_call(self):
        model, masks = masked()
        other = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
        model.add_adapter("other", other)
        model.set_adapter("other")
        assert filled(copy.deepcopy(model).merge_and_unload(), masks) > 0
        assert any("up_proj" in name for name in fs.mask_adapters(model))
        assert filled(model.merge_and_unload(), masks) == 0

    def test_adapters_that_were_injected_into_a_model(self):
        model, masks = pruned()
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), model)
        in_use = fs.mask_adapters(model)
        assert all("q_proj" in name for name in in_use)
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.merge()
        weights = dict(model.named_parameters())
        assert not any(weights[name.replace("weight", "base_layer.weight")][~masks[name]].any() for name in in_use)

    def test_copies_and_pickles_are_masked_too(self):
        model, masks = masked()
        output = logits(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert logits(twin).equal(output)
            assert filled(twin.merge_and_unload(), masks) == 0

    def test_checkpointed_gradients_are_the_same(self):
        gradients = []
        for checkpointed in (False, True):
            model, _ = masked()
            if checkpointed:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            loss_at(model.train()).backward()
            gradients.append([p.grad for p in adapters(model)])
        assert all(g is not None and g.any() for g in gradients[0])
        torch.testing.assert_close(*gradients)


class TestMasks:
    def test_they_are_the_zeros_of_what_has_adapters_by_the_names_of_the_base(self):
        model, masks = pruned()
        in_use = fs.mask_adapters(adapted(model))
        assert set(in_use) == {n for n in masks if any(t in n for t in ("q_proj", "v_proj", "down_proj"))}
        assert all(mask.equal(masks[name]) for name, mask in in_use.items())

    @pytest.mark.parametrize("source", ["base", "peft model"])
    def test_they_may_be_given(self, source):
        model, _ = pruned()
        model_with = adapted(model)
        given = fs.masks_from(model if source == "base" else model_with)
        in_use = fs.mask_adapters(model_with, given)
        assert same(in_use, fs.mask_adapters(adapted(model)))

    def test_a_given_mask_may_hold_weights_that_are_zero(self):
        model, masks = pruned()
        name = next(name for name in masks if "q_proj" in name)
        wider = {name: torch.ones_like(masks[name])}
        peft_model = adapted(model)
        assert fs.mask_adapters(peft_model, wider)[name].all()
        assert fs.mask_adapters(peft_model)[name].all()  # kept, and the other layers' zeros are found
        assert filled(peft_model.merge_and_unload(), {n: m for n, m in masks.items() if n != name}) == 0

    def test_dense_layers_and_embeddings_are_as_before(self):
        model, _ = pruned()
        with torch.no_grad():
            dense = next(p for name, p in matrices(model) if "v_proj" in name)
            dense[dense == 0] = 0.1
            model.model.embed_tokens.padding_idx = 3
            model.model.embed_tokens.weight[3] = 0  # by nature
        model = adapted(model, target_modules=["q_proj", "v_proj", "embed_tokens"])
        in_use = fs.mask_adapters(model)
        assert len([name for name in in_use if "v_proj" in name]) == 1
        assert len([name for name in in_use if "q_proj" in name]) == 2
        assert not any("embed" in name for name in in_use)

    def test_adapters_and_state_dicts_hold_none(self):
        model, _ = masked()
        assert not any("mask" in name for name in model.state_dict())

    def test_they_move_with_the_model(self):
        model, _ = masked()
        assert all(b.device.type == "meta" for n, b in model.to("meta").named_buffers() if "update_mask" in n)

    def test_a_layer_of_zeros_is_warned_of(self):
        model, _ = pruned()
        with torch.no_grad():
            next(p for name, p in matrices(model) if "q_proj" in name).zero_()
        with pytest.warns(UserWarning, match=r"q_proj' is zero throughout"):
            fs.mask_adapters(adapted(model))


class Quantized(nn.Linear):
    """A layer that stands for a quantized one: its weight holds whole numbers."""

    def __init__(self):
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)


def refused_layer(kind):
    """A net whose layers cannot be masked exactly, its adapters' configuration, and the masks that are given."""
    layers = {
        "embedding": nn.Embedding(4, 4),
        "grouped": nn.Conv1d(4, 4, 1, groups=2),
        "held": nn.Linear(4, 4),
        "attention": nn.MultiheadAttention(4, 1),
    }
    layer = layers.get(kind, nn.Linear(4, 4))
    if kind != "held":
        with torch.no_grad():
            for p in layer.parameters():
                p.view(-1)[0] = 0
    else:
        prune.l1_unstructured(layer, "weight", amount=0.5)
    net = nn.ModuleDict({"layer": layer, "other": nn.Linear(4, 4)})
    options = {"dora": {"use_dora": True}, "no bias": {"lora_bias": True}}.get(kind, {})
    if kind == "no bias":
        layer.bias = None
    config = LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False, **options)
    if kind == "saved":
        config = LoraConfig(r=2, target_modules=["other"], modules_to_save=["layer"])
        with torch.no_grad():
            net["other"].weight[0] = 0
    if kind == "loha":
        config = LoHaConfig(r=2, target_modules=["layer"])
    model = get_peft_model(net, config)
    if kind == "merged":
        model.merge_adapter()
    if kind == "tied":  # as the head of a language model is to its embedding
        net["other"].weight = layer.weight
    if kind == "quantized":
        model.base_model.model["layer"].base_layer = Quantized()
    if kind == "meta":
        model.to("meta")
    return model


REFUSED = {
    "dora": "Dora.*only plain LoRA",
    "loha": "loha.*only LoRA",
    "embedding": "lora.layer.Embedding.*only LoRA of linear",
    "attention": "MultiheadAttention.*only LoRA of linear",
    "grouped": "convolution with groups",
    "held": r"prune\.remove",
    "tied": "another layer, which merging would change",
    "quantized": "Quantized.*unquantized",
    "meta": "zeros cannot be read",
    "no bias": "lora_bias=True",
    "merged": "merged into 'layer'.*unmerge_adapter first",
    "saved": "modules_to_save trains 'layer' in full",
}


@pytest.mark.filterwarnings("ignore:.*`lora_bias=True` was passed", "ignore:.*groups > 1", "ignore:.*add_bias_kv")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_not_be_exact_is_refused_by_name(kind):
    model = refused_layer(kind)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(fs.InputError, match=REFUSED[kind]) as caught:
        fs.mask_adapters(model)
    assert "\n" not in str(caught.value)
    assert "layer" in str(caught.value)
    assert [type(module) for module in model.modules()] == kinds


def test_a_block_that_is_called_several_times_is_tied_to_no_other():
    block = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        block[0].weight[0] = 0
    model = get_peft_model(nn.Sequential(block, block), LoraConfig(r=2, target_modules="all-linear"))
    nn.init.normal_(next(p for name, p in model.named_parameters() if "lora_B" in name))
    fs.mask_adapters(model)
    x = torch.randn(3, 4)
    output = model(x)
    assert model.merge_and_unload()(x).equal(output)


class TestRefused:
    def test_a_model_without_adapters(self):
        with pytest.raises(fs.InputError, match="this Linear has no adapters"):
            fs.mask_adapters(nn.Linear(2, 2))

    def test_a_dense_model(self):
        model = adapted(pruned(sparsity=0.0)[0])
        with pytest.raises(fs.InputError, match="has a zero in its weight"):
            fs.mask_adapters(model)

    def test_adapters_that_wrote_into_the_base(self):
        model, masks = pruned()
        model = adapted(model, init_lora_weights="pissa")
        with pytest.raises(fs.InputError, match=r"q_proj.*not zero outside the mask.*'pissa'"):
            fs.mask_adapters(model, masks)

    @pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
    def test_an_adapter_that_is_added_later(self, options):
        model, _ = masked()
        config = LoraConfig(r=2, target_modules=["q_proj"], **options)
        with pytest.raises(fs.InputError, match="adapter 'later' cannot be masked"):
            model.add_adapter("later", config)

    def test_adapters_that_are_merged_with_other_masks(self):
        model, masks = masked()
        model.merge_adapter()
        with pytest.raises(fs.InputError, match="call unmerge_adapter first"):
            fs.mask_adapters(model, {name: torch.ones_like(mask) for name, mask in masks.items()})

    def test_a_batch_of_several_adapters(self):
        model, _ = masked()
        with pytest.raises(fs.InputError, match="use set_adapter"):
            model.eval()(input_ids=torch.zeros(2, 3, dtype=torch.long), adapter_names=["default", "__base__"])

    def test_masks_that_do_not_fit(self):
        model, masks = pruned()
        model, name = adapted(model), next(iter(masks))
        with pytest.raises(fs.InputError, match="no weight 'unknown"):
            fs.mask_adapters(model, {"unknown.weight": masks[name]})
        with pytest.raises(fs.InputError, match="give a bool tensor of the shape"):
            fs.mask_adapters(model, {name: masks[name][1:]})
        with pytest.raises(fs.InputError, match="no layer with adapters has a mask"):
            fs.mask_adapters(model, {name: m for name, m in masks.items() if "up_proj" in name})

    def test_given_masks_of_what_modules_to_save_trains(self):
        model, masks = pruned()
        model = adapted(model, modules_to_save=["up_proj"])
        with pytest.raises(fs.InputError, match="up_proj' in full"):
            fs.mask_adapters(model, masks)
        rest = {name: mask for name, mask in masks.items() if "up_proj" not in name}
        assert fs.mask_adapters(model, rest)


class TestSharpness:
    """S²-SAM on the factors: the gradient is that of the masked function at A + e_A, B + e_B."""

    RHO = 0.1

    def test_a_step_is_the_plain_form(self):
        layer, mask = nn.Linear(6, 5), torch.rand(5, 6) < 0.5
        model = around(layer, mask, r=2, lora_alpha=2)
        x, y = torch.randn(3, 8, 6), torch.randn(3, 8, 5)
        w, (a, b) = layer.weight.detach().clone(), [f.detach().clone() for f in factors(model)]
        optimizer = fs.S2SAM(torch.optim.SGD(adapters(model), lr=0.1), rho=self.RHO).follow(model)
        before = None
        for step in range(3):
            F.mse_loss(model(x[step]), y[step]).backward()
            optimizer.step()
            optimizer.zero_grad()
            shift = [0.0, 0.0]
            if before is not None:
                length = torch.cat([g.flatten() for g in before]).norm()
                shift = [self.RHO * g / length for g in before]
            near = [(p + e).requires_grad_() for p, e in zip((a, b), shift, strict=True)]
            output = F.linear(x[step], w + torch.where(mask, near[1] @ near[0], 0), layer.bias)
            before = torch.autograd.grad(F.mse_loss(output, y[step]), near)
            a, b = (p - 0.1 * g for p, g in zip((a, b), before, strict=True))
        torch.testing.assert_close([f.detach() for f in factors(model)], [a, b])

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_model_is_perturbed_in_every_step_and_nothing_warns(self, kind):
        ends = {}
        for rho in (0.0, self.RHO):
            model, masks = masked(kind)
            optimizer = fs.S2SAM(torch.optim.AdamW(adapters(model), lr=1e-2), rho=rho).follow(model)
            seen = []
            model.register_forward_pre_hook(lambda *_, o=optimizer, s=seen: s.append(o.is_perturbed))
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                train(model, 10, optimizer)
            if rho:
                assert seen == [False] + [True] * 9
            ends[rho] = logits(model)
            merged = model.merge_and_unload()
            assert logits(merged).equal(ends[rho])
            assert filled(merged, masks) == 0
        assert not torch.allclose(ends[0.0], ends[self.RHO], atol=1e-4)

    def test_it_is_never_silently_its_base(self):
        model, _ = masked()
        optimizer = fs.S2SAM(torch.optim.AdamW(adapters(model), lr=1e-2), rho=self.RHO)  # follows nothing
        with pytest.warns(UserWarning, match="follow"):
            train(model, 4, optimizer)
