"""What people complain of when they train low-rank adapters, or a part, of a pruned model; a test for each thread."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs

pytest.importorskip("peft", reason="adapters are PEFT's")

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.trainers.pruned_lora import (
    adapted,
    adapters,
    causal,
    evaluated,
    filled,
    logits,
    loss_at,
    matrices,
    prune_two_of_four,
    pruned,
    sparsity_of,
    train,
)


def trained(base, *, masked, steps=40, **options):
    """A model whose adapters were trained from a base, which stays as it is."""
    model = adapted(base, init_lora_weights=True, **options)
    if masked:
        fs.mask_adapters(model)
    return train(model, steps)


def keeps_two_of_four(model):
    return all(((p.detach().reshape(-1, 4) != 0).sum(1) <= 2).all() for _, p in matrices(model))


def test_wanda_10_the_update_may_be_masked_as_the_weights_are():
    """How is a pruned model tuned by LoRA: as W + m·AB, or will AB take its sparsity? locuslab/wanda#10"""
    base, masks = pruned()
    plain = trained(base, masked=False).merge_and_unload()
    assert filled(plain, masks) > 0.2 * sum(int((~mask).sum()) for mask in masks.values())

    model = trained(base, masked=True)
    layer, name = model.get_base_model().model.layers[0].self_attn.q_proj, "model.layers.0.self_attn.q_proj.weight"
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = base.get_parameter(name) + masks[name] * (layer.scaling["default"] * (b @ a))
    assert not torch.allclose(expected, base.get_parameter(name))
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.get_parameter(name), expected)
    assert filled(merged, masks) == 0


def test_wanda_83_sparsity_is_the_same_after_merging():
    """Sparsity of 40 % became 32.7 % after LoRA of the queries and values was trained and merged. locuslab/wanda#83"""
    base, _ = pruned(sparsity=0.4)
    tuned = ["q_proj", "v_proj"]
    plain = trained(base, masked=False, target_modules=tuned).merge_and_unload()
    kept = trained(base, masked=True, target_modules=tuned).merge_and_unload()
    total = sum(p.numel() for _, p in matrices(base))
    share = sum(p.numel() for name, p in matrices(base) if any(t in name for t in tuned)) / total
    assert sparsity_of(base) == pytest.approx(0.4, abs=1e-3)
    assert sparsity_of(plain) == pytest.approx(0.4 * (1 - share), abs=1e-3)
    assert sparsity_of(kept) == sparsity_of(base)


def test_pruner_zero_4_what_lora_regains_is_there_after_merging():
    """The branch is dense and cannot be merged, so what it regains of the loss is of no use. pprp/Pruner-Zero#4"""
    base, masks = pruned(sparsity=0.8)
    before = evaluated(base)
    plain = trained(base, masked=False, steps=100).merge_and_unload()
    learned = evaluated(plain)
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_parameter(name)[~mask] = 0
    model = trained(base, masked=True, steps=100)
    adapter_loss = evaluated(model)
    merged = model.merge_and_unload()
    assert evaluated(merged) == adapter_loss
    assert filled(merged, masks) == filled(plain, masks) == 0
    assert learned < 0.5 * evaluated(plain)  # masking afterwards takes most of it
    assert adapter_loss < 0.6 * evaluated(plain) < before


def test_pruner_zero_1_a_saved_pruned_model_is_tuned_merged_saved_and_evaluated(tmp_path):
    """How exactly is LoRA trained from a saved 2:4 model, and is what comes out evaluated? pprp/Pruner-Zero#1"""
    model = causal()
    prune_two_of_four(model)
    model.save_pretrained(tmp_path / "pruned")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert not keeps_two_of_four(trained(base, masked=False).merge_and_unload())

    tuned = trained(base, masked=True)
    loss = evaluated(tuned)
    assert loss < evaluated(base)
    tuned.merge_and_unload().save_pretrained(tmp_path / "tuned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert evaluated(loaded) == loss
    assert keeps_two_of_four(loaded)


def test_llm_pruner_24_removed_heads_stay_removed_after_merging():
    """After LoRA is merged into sparse weights, will these be dense? horseee/LLM-Pruner#24"""
    base = causal()
    with torch.no_grad():
        for layer in base.model.layers:  # the second head of each
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight[16:] = 0
            layer.self_attn.o_proj.weight[:, 16:] = 0
    targets = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    heads = {masked: trained(base, masked=masked, **targets).merge_and_unload() for masked in (False, True)}
    for masked, model in heads.items():
        attention = model.model.layers[0].self_attn
        woken = [attention.q_proj.weight[16:], attention.v_proj.weight[16:], attention.o_proj.weight[:, 16:]]
        assert any(weight.any() for weight in woken) is not masked
        assert attention.q_proj.weight[:16].all()


def test_llm_pruner_39_a_smaller_model_is_as_small_after_merging(tmp_path):
    """Tuning by LoRA seems to destroy what structured pruning has removed, once it is merged. horseee/LLM-Pruner#39"""
    dense = causal()
    small = LlamaForCausalLM(LlamaConfig(**{**dense.config.to_dict(), "intermediate_size": 24}))
    with torch.no_grad():
        rest = {name: p for name, p in dense.state_dict().items() if "mlp" not in name}
        small.load_state_dict(rest, strict=False)
        for mine, theirs in zip(small.model.layers, dense.model.layers, strict=True):
            kept = theirs.mlp.down_proj.weight.norm(dim=0).topk(24).indices
            mine.mlp.gate_proj.weight.copy_(theirs.mlp.gate_proj.weight[kept])
            mine.mlp.up_proj.weight.copy_(theirs.mlp.up_proj.weight[kept])
            mine.mlp.down_proj.weight.copy_(theirs.mlp.down_proj.weight[:, kept])
    small.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert logits(base).equal(logits(small))
    tuned = trained(base, masked=False)  # there are no zeros to keep
    output = logits(tuned)
    merged = tuned.merge_and_unload()
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (base, merged, dense)]
    assert shapes[0] == shapes[1] != shapes[2]
    torch.testing.assert_close(logits(merged), output, rtol=0, atol=1e-4)
    with pytest.raises(fs.InputError, match="no layer with adapters has a zero in its weight"):
        fs.mask_adapters(adapted(base))


class FourBits(nn.Linear):
    """A layer that stands for one in four bits: two numbers to a byte."""

    def __init__(self, like):
        super().__init__(like.in_features, like.out_features, bias=False)
        packed = torch.zeros(like.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


def test_unsloth_1370_a_two_of_four_model_is_tuned_served_with_its_adapters_and_merged():
    """Is LoRA on a 2:4 model correct, as merging may take its sparsity; and on a quantized one? unslothai/unsloth#1370"""
    base = causal()
    prune_two_of_four(base)
    assert not keeps_two_of_four(trained(base, masked=False).merge_and_unload())
    model = trained(base, masked=True)
    assert keeps_two_of_four(model.get_base_model())  # served beside its adapters
    served = logits(model)
    merged = model.merge_and_unload()
    assert keeps_two_of_four(merged)
    assert logits(merged).equal(served)

    quantized = adapted(base)
    layer = quantized.get_base_model().model.layers[0].self_attn.q_proj
    layer.base_layer = FourBits(layer.base_layer)
    with pytest.raises(fs.InputError, match=r"q_proj' is FourBits, .* load it unquantized"):
        fs.mask_adapters(quantized)


def support(model, share, score):
    """The largest of each matrix's scores."""
    masks = {}
    for name, p in matrices(model):
        largest = score(p).abs().flatten().topk(round(share * p.numel())).indices
        masks[name] = torch.zeros(p.numel(), dtype=torch.bool).index_fill_(0, largest, True).view(p.shape)
    return masks


def tune_a_part(base, masks, tmp_path, *, lr):
    """Train what is inside the masks and no more; return the model, and the base with the saved change applied."""
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW([model.get_parameter(name) for name in masks], lr=lr, weight_decay=0.1)
    optimizer = fs.S2SAM(optimizer, rho=0.01)
    training = fs.sparsify(model, optimizer, "static", masks=masks, steps=100, outside="frozen")
    assert {name: int(mask.sum()) for name, mask in training.masks.items()} == {
        n: int(m.sum()) for n, m in masks.items()
    }
    train(model, 100, optimizer)
    size = fs.export.save_delta(tmp_path / "delta.safetensors", model, base)
    fresh = fs.export.apply_delta(tmp_path / "delta.safetensors", copy.deepcopy(base))
    return model, fresh, size


@pytest.mark.parametrize("score", ["magnitude", "gradient"])
def test_peft_3518_a_sparse_support_of_a_frozen_model_is_trained(score, tmp_path):
    """The base is frozen, and a sparse support chosen by magnitude, or any indices, is trained. huggingface/peft#3518"""
    base = causal()
    torch.stack([loss_at(base, step) for step in range(4)]).mean().backward()
    masks = support(base, 0.05, (lambda p: p.grad) if score == "gradient" else (lambda p: p.detach()))
    base.zero_grad()
    model, fresh, size = tune_a_part(base, masks, tmp_path, lr=1e-2)
    assert evaluated(model) < 0.8 * evaluated(base)
    for name, p in base.named_parameters():
        own = model.get_parameter(name)
        outside = ~masks[name] if name in masks else torch.ones_like(p, dtype=torch.bool)
        assert own[outside].equal(p[outside])
        assert name not in masks or not own[~outside].equal(p[~outside])
    assert logits(fresh).equal(logits(model))
    assert 0 < size.changed <= sum(int(mask.sum()) for mask in masks.values())
    assert size.bytes < 0.25 * size.base_bytes


def test_peft_2329_whole_rows_and_columns_of_a_frozen_model_are_trained(tmp_path):
    """Only chosen channels of coupled layers are trained, and all else is left as it was. huggingface/peft#2329"""
    base = causal()
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for number, layer in enumerate(base.model.layers):
        channels = torch.randperm(48, generator=generator)[:5]
        for name in ("gate_proj", "up_proj", "down_proj"):
            mask = torch.zeros_like(layer.mlp.get_submodule(name).weight, dtype=torch.bool)
            (mask.T if name == "down_proj" else mask)[channels] = True
            masks[f"model.layers.{number}.mlp.{name}.weight"] = mask
    model, fresh, size = tune_a_part(base, masks, tmp_path, lr=1e-2)
    assert evaluated(model) < 0.9 * evaluated(base)
    for name, mask in masks.items():
        changed = model.get_parameter(name) != base.get_parameter(name)
        assert not changed[~mask].any()
        assert changed.any(dim=int("down_proj" not in name)).sum() == 5  # channels
    assert logits(fresh).equal(logits(model))
    assert size.changed < 0.15 * size.total


def test_peft_3292_a_tuned_model_with_removed_channels_is_made_smaller():
    """Structured sparsity is to make a tuned model smaller, with nothing besides at inference. huggingface/peft#3292"""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
    with torch.no_grad():
        for layer, reader in ((base[0], base[2]), (base[2], base[4])):
            gone = layer.weight.norm(dim=1).argsort()[:16]
            layer.weight[gone], layer.bias[gone], reader.weight[:, gone] = 0, 0, 0
    x, y = torch.randn(64, 16), torch.randint(4, (64,))
    small = {}
    for masked in (False, True):
        config = LoraConfig(r=4, target_modules=["0", "2", "4"])
        model = get_peft_model(copy.deepcopy(base), config)
        if masked:
            fs.mask_adapters(model)
        optimizer = torch.optim.AdamW(adapters(model), lr=1e-2)
        losses = []
        for _ in range(50):
            losses.append(F.cross_entropy(model(x), y))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < 0.5 * losses[0]
        output = model(x)
        small[masked] = fs.shrink(model.merge_and_unload())
        torch.testing.assert_close(small[masked](x), output, rtol=0, atol=1e-4)
    sizes = {masked: sum(p.numel() for p in model.parameters()) for masked, model in small.items()}
    whole = sum(p.numel() for p in base.parameters())
    assert sizes[False] == whole
    assert 0.2 < 1 - sizes[True] / whole < 0.5
