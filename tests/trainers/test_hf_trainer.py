"""Hugging Face's Trainer trains a pruned model sparse and sharpness-aware by two lines, and saves and resumes it exactly."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import flatsparse as fs
from tests.helpers import same, same_tensors
from tests.trainers.hugging_face import (
    STEPS,
    adamw,
    kinds,
    made,
    pruned_gpt2,
    revived,
    sequences,
    settings,
    sparse,
    transformers,
    watching,
)

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
methods = pytest.mark.parametrize("method", ["static", "rigl"])


def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / (num_items_in_batch or len(labels))


@methods
@kinds
@pytest.mark.parametrize(("accumulation", "bf16"), [(1, False), (3, True)], ids=["float32", "accumulated-bf16"])
def test_a_trainer_is_the_plain_loop_bit_for_bit(method, kind, bf16, accumulation, tmp_path):
    batches = []

    def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batches.append({key: torch.stack([item[key] for item in items]) for key in items[0]})
        return dict(batches[-1])

    given = {"data_collator": collate, "compute_loss_func": loss_of}
    options = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.5, "save_strategy": "no", "bf16": bf16}
    run = made(tmp_path, method, kind, dropout=0.0, with_trainer=given, lr_scheduler_type="constant", **options)
    run.trainer.train()

    model = pruned_gpt2(dropout=0.0)
    optimizer = adamw(model) if kind is None else kind(adamw(model), rho=0.3)
    training = sparse(model, optimizer, method)
    model.train()
    micro = iter(batches)
    for step in range(STEPS):
        # The tenth batch is the last of an epoch of forty.
        parts = [next(micro) for _ in range(accumulation if accumulation == 1 or step % 4 != 3 else 1)]
        items = sum(len(part["labels"]) for part in parts)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(input_ids=part["input_ids"]).logits
            (F.cross_entropy(logits.float(), part["labels"], reduction="sum") / items).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert same(model.state_dict(), run.model.state_dict())
    assert same(training.masks, run.training.masks)


@methods
@kinds
def test_zeros_hold_at_all_that_a_trainer_tells_of(method, kind, tmp_path):
    counts = []

    def look(arguments: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        counts.append(revived(model, run.training.masks))

    events = ("on_step_begin", "on_step_end", "on_optimizer_step", "on_evaluate", "on_save", "on_train_end")
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_grad_norm": 1.0}
    given = {"callbacks": [watching(dict.fromkeys(events, look))]}
    run = made(tmp_path, method, kind, with_trainer=given, **options)
    before = run.training.sparsity
    run.trainer.train()
    assert len(counts) > 4 * STEPS / 2
    assert set(counts) == {0}
    assert run.training.sparsity == before
    base = getattr(run.optimizer, "base", run.optimizer)
    weights = dict(run.model.named_parameters())
    for name, mask in run.training.masks.items():
        assert all(base.state[weights[name]][key][~mask].count_nonzero() == 0 for key in ("exp_avg", "exp_avg_sq"))


def test_without_the_two_lines_the_zeros_fill(tmp_path):
    model = pruned_gpt2()
    masks = fs.masks_from(model)
    arguments = settings(tmp_path, save_strategy="no")
    trainer = transformers.Trainer(model, arguments, train_dataset=sequences(), optimizers=(adamw(model), None))
    trainer.train()
    assert revived(model, masks) > 0.9 * sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_forward_but_those_of_the_first_step_is_perturbed(accumulation, tmp_path):
    run, perturbed = made(tmp_path, save_strategy="no", gradient_accumulation_steps=accumulation), []
    run.model.register_forward_pre_hook(
        lambda model, args: perturbed.append(run.optimizer.is_perturbed) if model.training else None
    )
    run.trainer.train()
    assert perturbed == [False] * accumulation + [True] * (len(perturbed) - accumulation)
    assert len(perturbed) > STEPS if accumulation > 1 else len(perturbed) == STEPS


PLAIN, HALF = {}, {"bf16": True, "gradient_accumulation_steps": 2}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "kind", "options"),
    [
        pytest.param("static", fs.S2SAM, PLAIN, id="static-s2sam"),
        pytest.param("rigl", fs.S2SAM, HALF, id="rigl-s2sam-bf16"),
        pytest.param("set", None, PLAIN, id="set"),
        pytest.param("rigl", None, HALF, id="rigl-bf16", marks=SLOW),
        pytest.param("static", None, PLAIN, id="static", marks=SLOW),
        pytest.param("set", fs.S2SAM, PLAIN, id="set-s2sam", marks=SLOW),
        pytest.param("dsr", fs.S2SAM, HALF, id="dsr-s2sam-bf16", marks=SLOW),
    ],
)
def test_a_resumed_run_is_the_one_that_never_stopped(method, kind, options, tmp_path):
    whole = made(tmp_path / "whole", method, kind, **options)
    whole.trainer.train()
    first = made(tmp_path / "parts", method, kind, **options)
    first.trainer.add_callback(
        watching({"on_save": lambda args, state, control, **rest: setattr(control, "should_training_stop", True)})
    )
    first.trainer.train()
    assert first.trainer.state.global_step == 3
    again = made(tmp_path / "parts", method, kind, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*masks")
        again.trainer.train(resume_from_checkpoint=True)
    assert again.trainer.state.global_step == STEPS
    for part in ("model", "optimizer", "training"):
        assert same(getattr(again, part).state_dict(), getattr(whole, part).state_dict()), part


@methods
@kinds
def test_what_is_saved_is_w_with_its_zeros_and_masks(method, kind, tmp_path):
    at: dict[int, Any] = {}

    def keep(arguments: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        at[state.global_step] = copy.deepcopy(
            ({n: p.detach() for n, p in model.named_parameters()}, run.training.masks)
        )

    options = {"eval_strategy": "steps", "eval_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
    run = made(tmp_path, method, kind, with_trainer={"callbacks": [watching({"on_step_end": keep})]}, **options)
    run.trainer.train()
    losses = {log["step"]: log["eval_loss"] for log in run.trainer.state.log_history if "eval_loss" in log}
    for step in (3, 6):
        folder = tmp_path / f"checkpoint-{step}"
        weights, masks = at[step]
        assert same_tensors(load_file(folder / "model.safetensors"), weights)
        saved = torch.load(folder / "optimizer.pt", weights_only=True)
        assert same(saved["sparse_training"]["masks"], masks)
        model = transformers.GPT2ForSequenceClassification.from_pretrained(folder)
        assert revived(model, masks) == 0
        plain = transformers.Trainer(model, settings(tmp_path), eval_dataset=sequences(8))
        assert plain.evaluate()["eval_loss"] == losses[step]
    run.trainer.save_model(str(tmp_path / "end"))
    end = fs.masks_from(tmp_path / "end")
    assert set(end) == set(run.training.masks)
    assert not any((end[name] & ~mask).any() for name, mask in run.training.masks.items())
    assert same_tensors(load_file(tmp_path / "end" / "model.safetensors"), dict(run.model.named_parameters()))


@methods
@kinds
def test_the_best_model_at_the_end_is_whole_although_the_masks_have_moved(method, kind, tmp_path):
    scores = iter([0.0, 5.0, 1.0, 2.0])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "made_up", "greater_is_better": True}
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, **best}
    given = {"compute_metrics": lambda predicted: {"made_up": next(scores)}}
    run = made(tmp_path, method, kind, with_trainer=given, **options)
    run.trainer.train()
    assert run.trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    best_weights = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    last_weights = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert same_tensors(dict(run.model.named_parameters()), best_weights)
    assert not same_tensors(best_weights, last_weights)
    assert revived(run.model, run.training.masks) == 0
    assert run.training.sparsity == pytest.approx(2 / 3, abs=0.01)


# -- other ways to give the optimizer -----------------------------------------------------------------------------------------


def checked(trainer: Any, training: fs.SparseTraining, masks: dict[str, torch.Tensor]) -> None:
    before = copy.deepcopy(list(trainer.model.parameters()))
    trainer.train()
    assert training.steps_taken == STEPS
    assert revived(trainer.model, masks) == 0
    assert not any(torch.equal(p, old) for p, old in zip(trainer.model.parameters(), before, strict=True) if p.ndim > 1)


def test_the_trainers_own_optimizer_is_made_first_and_wrapped(tmp_path):
    model = pruned_gpt2()
    trainer = transformers.Trainer(
        model, settings(tmp_path, save_strategy="no", weight_decay=0.1), train_dataset=sequences()
    )
    trainer.optimizer = fs.S2SAM(trainer.create_optimizer(), rho=0.1)
    training = sparse(model, trainer.optimizer, "static")
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    checked(trainer, training, fs.masks_from(model))


def test_create_optimizer_is_overridden(tmp_path):
    made_by: list[fs.SparseTraining] = []

    class SparseTrainer(transformers.Trainer):
        def create_optimizer(self, *given: Any) -> Any:
            if self.optimizer is None:
                self.optimizer = fs.S2SAM(super().create_optimizer(*given), rho=0.1)
                made_by.append(sparse(self.model, self.optimizer, "static"))
            return self.optimizer

    trainer = SparseTrainer(
        model_init=lambda: pruned_gpt2(), args=settings(tmp_path, save_strategy="no"), train_dataset=sequences()
    )
    masks = fs.masks_from(pruned_gpt2())
    trainer.train()
    trainer.train()  # makes model and optimizer anew
    assert [training.steps_taken for training in made_by] == [STEPS, STEPS]
    assert revived(trainer.model, masks) == 0


class S2SAMAdamW(fs.S2SAM):
    """An optimizer as `optimizer_cls_and_kwargs` wants it: a class that takes parameters."""

    def __init__(self, params: Any, *, rho: float, **options: Any) -> None:
        super().__init__(torch.optim.AdamW(params, **options), rho)


def test_an_optimizers_class_is_given(tmp_path):
    model = pruned_gpt2()
    chosen = (S2SAMAdamW, {"lr": 1e-2, "rho": 0.1})
    arguments = settings(tmp_path, save_strategy="no")
    trainer = transformers.Trainer(model, arguments, train_dataset=sequences(), optimizer_cls_and_kwargs=chosen)
    training = sparse(model, trainer.create_optimizer(), "static")
    checked(trainer, training, fs.masks_from(model))


def test_a_callback_may_sparsify_when_training_begins(tmp_path):
    """The Trainer has prepared the optimizer by then: what it gives is Accelerate's wrapper."""
    model, trainings = pruned_gpt2(), []

    def begin(arguments: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **rest: Any) -> None:
        trainings.append(fs.sparsify(model, optimizer, "static", masks=fs.masks_from(model), steps=state.max_steps))

    arguments = settings(tmp_path, save_strategy="no")
    trainer = transformers.Trainer(
        model, arguments, train_dataset=sequences(), callbacks=[watching({"on_train_begin": begin})]
    )
    masks = fs.masks_from(model)
    trainer.train()
    assert trainings[0].steps_taken == STEPS
    assert revived(model, masks) == 0


@methods
@kinds
def test_float16_with_a_scaler_that_skips_steps(method, kind, tmp_path):
    """On a CPU a Trainer takes no scaler by itself, and calls float16 what is float32; so it is given one here."""
    run, scales = made(tmp_path, method, kind, save_strategy="no"), []
    run.trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=2)
    run.trainer.accelerator.native_amp = True

    def look(arguments: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        scales.append(run.trainer.accelerator.scaler.get_scale())
        assert revived(model, run.training.masks) == 0

    half = torch.autocast("cpu", torch.float16)
    run.model.forward = half(run.model.forward)
    run.trainer.add_callback(watching({"on_step_end": look}))
    run.trainer.train()
    skipped = sum(now < before for before, now in zip([2.0**19, *scales], scales, strict=False))
    assert 0 < skipped < STEPS
    assert run.training.steps_taken == STEPS - skipped


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_clipping_counts_live_weights_only_where_gradients_are_masked_before_it(masked, accumulation, tmp_path):
    run = made(tmp_path, "rigl", save_strategy="no", gradient_accumulation_steps=accumulation, max_grad_norm=0.1)
    step, norms = run.trainer.training_step, []

    def training_step(*given: Any, **more: Any) -> torch.Tensor:
        loss = step(*given, **more)
        if run.trainer.accelerator.sync_gradients:
            if masked:
                run.training.mask_gradients()
            gradients = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
            live = [g * run.training.masks.get(name, True) for name, g in gradients.items()]
            norms.append(torch.cat([g.flatten() for g in live]).norm().item())
        return loss

    clip, told = run.trainer.accelerator.clip_grad_norm_, []
    run.trainer.accelerator.clip_grad_norm_ = lambda *given: told.append(clip(*given)) or told[-1]
    run.trainer.training_step = training_step
    run.trainer.train()
    assert len(told) == len(norms) == STEPS
    pairs = list(zip(told, norms, strict=True))
    assert all(total == pytest.approx(norm, rel=1e-4) for total, norm in pairs) == masked
    assert run.training.exploration > 1 - run.training.sparsity  # rules have seen the dense gradient


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_checkpointed_activations_change_no_bit(reentrant, tmp_path):
    runs = [made(tmp_path, "rigl", dropout=0.0, save_strategy="no") for _ in range(2)]
    runs[0].model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for run in runs:
        run.trainer.train()
    assert same(runs[0].model.state_dict(), runs[1].model.state_dict())


@pytest.mark.slow
@kinds
def test_a_compiled_model_in_a_trainer_changes_no_bit(kind, tmp_path):
    runs = [made(tmp_path, "rigl", kind, dropout=0.0, save_strategy="no")]
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    runs.append(made(tmp_path, "rigl", kind, dropout=0.0, save_strategy="no", **compiled))
    for run in runs:
        run.trainer.train()
    assert type(runs[1].trainer.model_wrapped).__name__ == "OptimizedModule"
    assert same(runs[0].model.state_dict(), runs[1].model.state_dict())


@pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) < 5, reason="files have the names of the model")
def test_masks_of_a_file_whose_names_are_not_the_models_are_refused_with_the_cure(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=2, **sizes))
    weight = dict(model.named_parameters())["vit.layers.0.mlp.fc1.weight"]
    weight.data[:4] = 0
    model.save_pretrained(tmp_path)
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(fs.InputError, match=r"no weight 'vit.encoder.* give masks_from\(model\) once it is loaded"):
        fs.sparsify(loaded, adamw(loaded), "static", masks=fs.masks_from(tmp_path), steps=1)
    training = fs.sparsify(loaded, adamw(loaded), "static", masks=fs.masks_from(loaded), steps=1)
    assert int((~training.masks["vit.layers.0.mlp.fc1.weight"]).sum()) == 4 * 16
