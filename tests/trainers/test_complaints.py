"""What people have complained of elsewhere does not happen here: a pruned model stays pruned, whatever is done to it.

A test names the thread, tells it in a sentence, and shows first that the plain way has the fault, where that is cheap.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsparse as fs
from tests.helpers import same
from tests.trainers.hugging_face import revived, settings, transformers
from tests.trainers.pruned import (
    STEPS,
    Masks,
    adamw,
    bert,
    block,
    block_loss,
    cut,
    is_2_of_4,
    llama,
    texts,
    tune,
    tune_sparse,
    zeros,
)

# -- language models ----------------------------------------------------------------------------------------------------------


def test_transformers_29227_a_pruned_model_is_tuned_with_a_mask_of_its_own_layers(tmp_path):
    """A Mistral that OWL has pruned, each layer by another share, has no way to be trained on with its mask, least of all
    under DDP (huggingface/transformers#29227).
    """
    model = cut(llama("Mistral"), lambda name: 0.8 if "layers.0" in name else 0.4)
    masks = fs.masks_from(model)
    plain = copy.deepcopy(model)
    tune(plain, adamw(plain))
    assert revived(plain, masks) > 0.9 * zeros(masks)

    optimizer = fs.S2SAM(adamw(model), rho=0.05)
    training = fs.sparsify(model, optimizer, "static", masks=masks, steps=STEPS)
    data = [{"input_ids": ids, "labels": ids} for batch in texts() for ids in batch]
    arguments = settings(tmp_path, max_steps=STEPS, per_device_train_batch_size=4)
    transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    assert revived(model, masks) == 0
    shares = {row.name: row.sparsity for row in training.report().layers}
    assert {round(share, 1) for name, share in shares.items() if "layers.0" in name} == {0.8}
    assert {round(share, 1) for name, share in shares.items() if "layers.1" in name} == {0.4}
    training.detach()

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        distributed = nn.parallel.DistributedDataParallel(model)
        tune_sparse(distributed, masks)
    finally:
        torch.distributed.destroy_process_group()
    assert revived(model, masks) == 0


@pytest.mark.parametrize("parts", [1, 2])
def test_sparsegpt_17_a_saved_sparse_llama_is_tuned_and_stays_sparse(parts, tmp_path):
    """The saved checkpoint of a sparsified LLaMA has exact zeros, which fine-tuning fills unless one's own code stores the
    masks and applies them after every step (IST-DASLab/sparsegpt#17).
    """
    size = {} if parts == 1 else {"max_shard_size": "10KB"}
    cut(llama(), 0.5).save_pretrained(tmp_path / "sparse", **size)
    assert len(list((tmp_path / "sparse").glob("*.safetensors"))) >= parts
    masks = fs.masks_from(tmp_path / "sparse")
    plain, model = (transformers.LlamaForCausalLM.from_pretrained(tmp_path / "sparse") for _ in range(2))
    tune(plain, adamw(plain))
    assert revived(plain, masks) > 0.9 * zeros(masks)
    tune_sparse(model, masks)
    assert revived(model, masks) == 0
    model.save_pretrained(tmp_path / "tuned", **size)
    again = fs.masks_from(tmp_path / "tuned")
    assert set(again) == set(masks)
    assert not any((again[name] & ~mask).any() for name, mask in masks.items())
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "tuned")
    assert same(dict(loaded.named_parameters()), dict(model.named_parameters()))


def test_llm_compressor_952_a_2_of_4_model_is_2_of_4_after_tuning(tmp_path):
    """Tuning a 2:4 sparse model, as by a LoRA that is merged, may lose the sparsity; one would have to mask the update by the
    sparse weight's mask (vllm-project/llm-compressor#952).
    """
    model = llama()
    once = fs.sparsify(model, adamw(model), "static", sparsity=0.5, pattern=(2, 4), steps=1, exclude=["lm_head"])
    layers = list(once.masks)
    once.detach()
    plain = copy.deepcopy(model)
    tune(plain, adamw(plain))
    assert not any(is_2_of_4(plain.get_parameter(name)) for name in layers)

    tune_sparse(model, fs.masks_from(model))
    model.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert layers
    assert all(is_2_of_4(loaded.get_parameter(name)) for name in layers)


def test_sparseml_2222_pruning_a_sparse_model_again_keeps_its_zeros():
    """A second pruning of a sparse model chose masks that were very different from the first, so that weights that had been
    pruned were not; 2:4 on a model at 70 % should keep both (neuralmagic/sparseml#2222).
    """
    model = cut(llama(), 0.7)
    first = {name: mask for name, mask in fs.masks_from(model).items() if "lm_head" not in name}
    choose = {"sparsity": 0.5, "pattern": (2, 4), "exclude": ["lm_head"], "steps": STEPS}
    plain = copy.deepcopy(model)
    optimizer = adamw(plain)
    fs.sparsify(plain, optimizer, "static", **choose)
    with pytest.warns(UserWarning, match=r"to keep a net as others pruned it, .*masks_from"):
        tune(plain, optimizer)
    assert revived(plain, first) > 0  # 2 of each 4 are trained, those that were zero among them

    once = fs.sparsify(model, adamw(model), "static", **choose)
    once.detach()
    tune_sparse(model, fs.masks_from(model))
    assert revived(model, first) == 0
    assert all(is_2_of_4(model.get_parameter(name)) for name in first)
    assert any(
        (model.get_parameter(name) != 0).sum() < mask.sum() for name, mask in first.items()
    )  # it was pruned further


# -- encoders and vision ------------------------------------------------------------------------------------------------------


def test_nn_pruning_5_what_is_pruned_in_a_trainer_is_counted_in_what_it_saves(tmp_path):
    """A pruning Trainer ran to its end, and the model that it saved had as many weights as before
    (huggingface/nn_pruning#5).
    """
    model = bert("SequenceClassification", num_labels=3)
    optimizer = fs.S2SAM(adamw(model), rho=0.05)
    training = fs.sparsify(model, optimizer, "gmp", sparsity=0.8, steps=12, every=2)
    assert training.sparsity < 0.3
    source = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(1, 32, (8,), generator=source), "labels": torch.tensor(i % 3)} for i in range(48)
    ]
    arguments = settings(tmp_path, max_steps=12, save_strategy="no")
    trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))
    trainer.train()
    trainer.save_model()
    saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    counted = [(int(saved.get_parameter(name).count_nonzero()), mask.numel()) for name, mask in training.masks.items()]
    sparsity = 1 - sum(nonzero for nonzero, _ in counted) / sum(size for _, size in counted)
    assert sparsity == pytest.approx(0.8, abs=0.001)
    assert training.sparsity == pytest.approx(sparsity, abs=0.001)


def test_nn_pruning_3_token_classification_in_a_loop_of_ones_own():
    """How to prune a model of one's own for token classification, without a Trainer, was not to be understood from the
    documentation (huggingface/nn_pruning#3).
    """
    model = cut(bert("TokenClassification", num_labels=4), 0.6)
    masks = {name: mask for name, mask in fs.masks_from(model).items() if "encoder" in name}

    def loss(ids: Tensor) -> Tensor:
        return model(input_ids=ids, labels=ids % 4).loss

    tune_sparse(model, masks, loss)
    assert revived(model, masks) == 0
    assert model.classifier.weight.count_nonzero() > 0.9 * model.classifier.weight.numel()  # its mask was not given


def test_nm_sparsity_16_a_2_of_4_mask_stays_where_it_is_once_weights_are_loaded(tmp_path):
    """The masks of a 2:4 model move with its weights as it trains, and another tool, which keeps them, fails on a Swin
    (aojunzz/NM-sparsity#16).
    """
    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    torch.manual_seed(0)
    transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)).save_pretrained(tmp_path)
    model = transformers.SwinForImageClassification.from_pretrained(tmp_path).train()
    optimizer = fs.S2SAM(adamw(model), rho=0.05)
    chosen = {"sparsity": 0.5, "pattern": (2, 4), "exclude": ["*embeddings*", "classifier"]}
    training = fs.sparsify(model, optimizer, "static", steps=STEPS, **chosen)
    before = copy.deepcopy(training.masks)
    dense = {name: model.get_parameter(name).detach().clone() for name in before}
    moved = 0
    for step in range(STEPS):
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        model(pixel_values=images, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        with torch.no_grad():  # the weights of a way that keeps all of them, and masks the largest anew at each step
            dense = {name: w - 0.1 * model.get_parameter(name).grad.sign() for name, w in dense.items()}
        optimizer.step()
        optimizer.zero_grad()
        assert same(training.masks, before)
        assert all(is_2_of_4(model.get_parameter(name)) for name in before)
    for name, w in dense.items():
        groups = w.unflatten(1, (-1, 4)).abs()
        kept = groups >= groups.topk(2, 2).values[..., 1:]
        moved += int((kept.flatten(1) != before[name]).sum())
    assert moved > 0
    assert revived(model, before) == 0


# -- quantization and conversion ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("prepared", ["before", "after"])
def test_model_optimizer_122_quantization_aware_training_keeps_the_masks(prepared):
    """There is no known way to keep a sparse mask as it is while training with fake quantization
    (NVIDIA/Model-Optimizer#122).
    """
    quantization = pytest.importorskip("torch.ao.quantization")

    def with_fake_quantization(model: nn.Module) -> nn.Module:
        model.qconfig = quantization.get_default_qat_qconfig("x86")
        return quantization.prepare_qat(model.train(), inplace=True)

    plain = with_fake_quantization(block())
    masks = fs.masks_from(plain)
    tune(plain, adamw(plain), block_loss(plain))
    assert revived(plain, masks) > 0.9 * zeros(masks)

    model = block()
    if prepared == "before":
        model = with_fake_quantization(model)
    optimizer = fs.S2SAM(adamw(model), rho=0.05)
    training = fs.sparsify(model, optimizer, "static", masks=masks, steps=STEPS)
    if prepared == "after":  # other layers of the same weights
        model = with_fake_quantization(model)
    tune(model, optimizer, block_loss(model))
    assert same(training.masks, masks)
    assert revived(model, masks) == 0
    for name, mask in masks.items():  # and so in what is computed with, and in the integers at the end
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert layer.weight_fake_quant(layer.weight)[~mask].count_nonzero() == 0
    integers = quantization.convert(model.eval())
    for name, mask in masks.items():
        weight = integers.get_submodule(name.removesuffix(".weight")).weight().dequantize()
        assert weight[~mask].count_nonzero() == 0
        assert weight[mask].count_nonzero() > 0.9 * mask.sum()


LEFT_OUT = {
    "a mask": None,
    "exclude": {"exclude": ["bert.encoder.layer.0.intermediate.*"]},
    "include": {"include": ["*.query", "*.key", "*.value"]},
}


@pytest.mark.parametrize("left", LEFT_OUT)
def test_model_optimizer_130_some_layers_are_left_dense(left):
    """How some of a model's parameters are to be kept dense is not said anywhere (NVIDIA/Model-Optimizer#130)."""
    model = bert("SequenceClassification", num_labels=3)
    first = "bert.encoder.layer.0.intermediate.dense.weight"
    optimizer = fs.S2SAM(adamw(model), rho=0.05)
    if left == "a mask":
        masks = fs.masks_from(cut(model, 0.6))
        del masks[first]
        training = fs.sparsify(model, optimizer, "static", masks=masks, steps=STEPS)
    else:
        training = fs.sparsify(model, optimizer, "static", sparsity=0.6, steps=STEPS, **LEFT_OUT[left])
    assert first not in training.masks
    assert training.masks
    tune(model, optimizer, lambda ids: model(input_ids=ids, labels=ids[:, 0] % 3).loss)
    weight = model.get_parameter(first)
    assert weight.count_nonzero() > 0.9 * weight.numel()
    assert revived(model, training.masks) == 0
    assert training.sparsity == pytest.approx(0.6, abs=0.01)


def test_onnxsim_1239_fine_tuning_a_pruned_block_is_no_failure_that_looks_like_success():
    """Fine-tuning a pruned block kept 0 of its 128 zeros and reported a lower error for it, that of a dense model
    (onnxsim/onnxsim#1239, formerly daquexian/onnx-simplifier).
    """
    plain, model = block(), block()
    masks = fs.masks_from(model)
    assert zeros(masks) == 128
    tune(plain, adamw(plain), block_loss(plain))
    assert revived(plain, masks) == 128
    base = adamw(model)
    optimizer = fs.S2SAM(base, rho=0.05)
    training = fs.sparsify(model, optimizer, "static", masks=masks, steps=STEPS)
    tune(model, optimizer, block_loss(model))
    assert revived(model, masks) == 0
    assert training.sparsity == 0.5
    for name, mask in masks.items():  # no clean-up of what has drifted: there is nothing to drift by
        state = base.state[model.get_parameter(name)]
        assert all(state[key][~mask].count_nonzero() == 0 for key in ("exp_avg", "exp_avg_sq"))


def in_safetensors(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def loaded_in(kind: torch.dtype) -> Callable[[nn.Module, Path], dict[str, Tensor]]:
    def convert(model: nn.Module, folder: Path) -> dict[str, Tensor]:
        model.save_pretrained(folder)
        return dict(type(model).from_pretrained(folder, dtype=kind).named_parameters())

    return convert


def exported(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    program = torch.export.export(model, (), {"input_ids": next(texts())})
    torch.export.save(program, folder / "model.pt2")
    return dict(torch.export.load(folder / "model.pt2").state_dict)


class Logits(nn.Module):
    """A model of one tensor in and one out, as ONNX has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits


def in_onnx(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    masks = {f"model.{name}": mask for name, mask in fs.masks_from(model).items()}
    fs.export.onnx.save_onnx(folder / "model.onnx", Logits(model).eval(), masks, next(texts()))
    graph = onnx.load(folder / "model.onnx").graph
    found = {item.name: torch.tensor(onnx.numpy_helper.to_array(item)) for item in graph.initializer}
    return {name.removeprefix("model."): value for name, value in found.items()}


CONVERSIONS = {
    "safetensors": in_safetensors,
    "float16": loaded_in(torch.float16),
    "bfloat16": loaded_in(torch.bfloat16),
    "torch.export": exported,
    "onnx": in_onnx,
}


@pytest.fixture(scope="module")
def tuned() -> tuple[Any, Masks]:
    model = cut(bert("SequenceClassification", num_labels=3, num_hidden_layers=1), 0.7)
    masks = fs.masks_from(model)
    tune_sparse(model, masks, lambda ids: model(input_ids=ids, labels=ids[:, 0] % 3).loss)
    return model.eval(), masks


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_transformers_29227_and_what_the_tuned_model_is_converted_to_has_the_zeros(conversion, tuned, tmp_path):
    """A pruned model is tuned to be deployed, so what it is saved as, and converted to, has to have its zeros
    (huggingface/transformers#29227).
    """
    model, masks = tuned
    tensors = CONVERSIONS[conversion](model, tmp_path)
    counts = sorted((int((t == 0).sum()), t.numel()) for t in tensors.values() if t.ndim == 2)
    for name, mask in masks.items():
        if name in tensors and tensors[name].shape == mask.shape:
            assert tensors[name][~mask].count_nonzero() == 0
        else:  # the exporter to ONNX transposes some, under names of its own
            assert (int((~mask).sum()), mask.numel()) in counts


# -- optimizers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kind", [fs.S2SAM, None], ids=["s2sam", "base"])
def test_filter_pruning_geometric_median_47_momentum_revives_no_weight(kind, nesterov):
    """Only gradients were masked, so that filters that were pruned in the midst of a training came back by the momentum that
    they had (he-y/filter-pruning-geometric-median#47).
    """

    def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": nesterov}
        optimizer = torch.optim.SGD(model.parameters(), **options)
        train(model, optimizer)
        with torch.no_grad():
            smallest = model[0].weight.flatten(1).norm(dim=1).argsort()[:4]
            model[0].weight[smallest] = 0  # whole filters, and their momentum is still there
        return model, optimizer

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks | None = None) -> None:
        for step in range(4):
            images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(step))
            F.cross_entropy(model(images), torch.arange(8) % 4).backward()
            for name, mask in (masks or {}).items():
                model.get_parameter(name).grad *= mask
            optimizer.step()
            optimizer.zero_grad()

    plain, optimizer = trained()
    masks = fs.masks_from(plain)
    assert list(masks) == ["0.weight"]
    assert zeros(masks) == 4 * 9
    train(plain, optimizer, masks)
    assert revived(plain, masks) == zeros(masks)

    model, optimizer = trained()
    wrapped = optimizer if kind is None else kind(optimizer, rho=0.05)
    fs.sparsify(model, wrapped, "static", masks=masks, steps=4)
    train(model, wrapped)
    assert revived(model, masks) == 0
    assert optimizer.state[model[0].weight]["momentum_buffer"][~masks["0.weight"]].count_nonzero() == 0
