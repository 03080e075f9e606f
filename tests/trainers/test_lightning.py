"""Lightning's automatic optimization: what is trained, what is evaluated, what is saved, and what is resumed."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatsparse as fs
from tests.helpers import adamw, assert_zero_outside, copied, masked, mlp, same

lightning = pytest.importorskip("lightning")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
EPOCHS, BATCHES = 4, 6
STEPS = EPOCHS * BATCHES
OPTIONS = {"rigl": {"every": 4, "until": STEPS, "drop_fraction": 0.5}, "static": {}}

# Lightning and torch warn of few workers, of a checkpoint whose callback is not there and of a scaler's first step.
OTHERS = "num_workers|LeafSpec|ckpt_path|Checkpoint directory|exists and is not empty|lr_scheduler.step|The dirpath has changed"
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings(f"ignore:(?s).*({OTHERS})")]


class Module(lightning.LightningModule):
    """A small net, made sparse in ``configure_optimizers``, which Lightning calls before it loads a checkpoint's optimizer.

    Args:
        part: call the net by itself, not through the module.
        evaluated: the name of the part that is evaluated; None for what is trained.

    Attributes:
        seen: of every forward, whether it was in training mode and whether at w + e.
    """

    def __init__(
        self, *, method: str = "rigl", part: bool = False, evaluated: str | None = None, kind: Any = fs.S2SAM
    ) -> None:
        super().__init__()
        self.net = mlp()
        self.method, self.part, self.evaluated, self.kind = method, part, evaluated, kind
        self.seen: list[tuple[bool, bool]] = []
        self.net[0].register_forward_pre_hook(self.note)

    def note(self, module: nn.Module, args: Any) -> None:
        if hasattr(self, "optimizer"):
            self.seen.append((module.training, self.optimizer.is_perturbed))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def loss(self, batch: Any, part: bool) -> Tensor:
        return nn.functional.cross_entropy((self.net if part else self)(batch[0]), batch[1])

    def training_step(self, batch: Any) -> Tensor:
        return self.loss(batch, self.part)

    def validation_step(self, batch: Any) -> None:
        self.log("loss", self.loss(batch, self.part if self.evaluated is None else self.evaluated == "net"))

    test_step = validation_step

    def predict_step(self, batch: Any) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        self.optimizer = self.kind(adamw(self.parameters()), rho=0.05)
        options = {"sparsity": 0.8, "steps": STEPS, "exclude": ["*3.weight"], **OPTIONS[self.method]}
        self.sparse = fs.sparsify(self, self.optimizer, self.method, **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        return [self.optimizer], [{"scheduler": schedule, "interval": "step"}]

    @property
    def trained(self) -> list[bool]:
        return [perturbed for training, perturbed in self.seen if training]

    @property
    def checked(self) -> list[bool]:
        return [perturbed for training, perturbed in self.seen if not training]


def loader() -> Any:
    source = torch.Generator().manual_seed(7)
    inputs = torch.randn(8 * BATCHES, 6, generator=source)
    return torch.utils.data.DataLoader(list(zip(inputs, inputs[:, 0].gt(0).long(), strict=True)), batch_size=8)


def trainer(folder: Path, epochs: int = EPOCHS, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    here = {"accelerator": "cpu", "devices": 1, "default_root_dir": str(folder), "num_sanity_val_steps": 0}
    kept = {"enable_checkpointing": False} if "callbacks" not in options else {}
    return lightning.Trainer(max_epochs=epochs, **quiet, **here, **kept, **options)


def every_epoch(folder: Path) -> Any:
    return callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)


def fitted(folder: Path, module: Module, **options: Any) -> Module:
    trainer(folder, **options).fit(module, loader(), loader())
    return module


def everything(module: Module) -> Any:
    return copy.deepcopy((module.state_dict(), module.optimizer.state_dict(), module.sparse.state_dict()))


def float16() -> dict[str, Any]:
    """Lightning refuses ``precision="16-mixed"`` on a CPU, but its plugin runs there."""
    from lightning.pytorch.plugins import MixedPrecision

    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8))]}


SETTINGS: dict[str, Any] = {
    "plain": dict,
    "accumulation": lambda: {"accumulate_grad_batches": 2},
    "bf16-clipped": lambda: {"precision": "bf16-mixed", "gradient_clip_val": 0.5},
    "fp16-accumulation-clipped": lambda: {**float16(), "accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    "validated-within-epochs": lambda: {"val_check_interval": 2},
}
parts = pytest.mark.parametrize("part", [False, True], ids=["self", "self.net"])
methods = pytest.mark.parametrize("method", list(OPTIONS))


@pytest.mark.parametrize("setting", SETTINGS)
@parts
@methods
def test_a_resumed_fit_is_the_one_that_never_stopped(tmp_path, method, part, setting):
    def options() -> dict[str, Any]:
        return SETTINGS[setting]()

    whole = fitted(tmp_path, Module(method=method, part=part), **options())
    accumulated = options().get("accumulate_grad_batches", 1)
    assert whole.sparse.steps_taken == STEPS // accumulated
    # The first step is unperturbed, and so are all steps before it in which a scaler skips.
    assert whole.trained == [False] * accumulated + [True] * (STEPS - accumulated)
    assert whole.checked
    assert not any(whole.checked)
    first = Module(method=method, part=part)
    fitted(tmp_path, first, epochs=2, callbacks=[every_epoch(tmp_path)], **options())
    again = Module(method=method, part=part)
    file = str(tmp_path / "epoch=1.ckpt")
    trainer(tmp_path, **options()).fit(again, loader(), loader(), ckpt_path=file)
    assert all(again.trained)
    assert len(again.trained) == STEPS // 2
    assert same(everything(again), everything(whole))
    assert_zero_outside(again, again.sparse, again.optimizer)
    if method == "rigl":
        assert not same(first.sparse.masks, again.sparse.masks)


@methods
def test_a_fit_resumed_where_the_model_was_made_sparse_before_it(tmp_path, method):
    class Before(Module):
        """Made sparse where it is made."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.configured = super().configure_optimizers()

        def configure_optimizers(self) -> Any:
            return self.configured

    whole = fitted(tmp_path, Before(method=method))
    fitted(tmp_path, Before(method=method), epochs=2, callbacks=[every_epoch(tmp_path)])
    again = Before(method=method)
    trainer(tmp_path).fit(again, loader(), loader(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert same(everything(again), everything(whole))
    inside = fitted(tmp_path, Module(method=method))
    assert same(everything(inside), everything(whole))


@parts
def test_sam_takes_both_gradients_through_the_closure(tmp_path, part):
    whole = fitted(tmp_path, Module(part=part, kind=fs.SAM))
    assert whole.trained == [False, True] * STEPS
    fitted(tmp_path, Module(part=part, kind=fs.SAM), epochs=2, callbacks=[every_epoch(tmp_path)])
    again = Module(part=part, kind=fs.SAM)
    trainer(tmp_path).fit(again, loader(), loader(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert same(everything(again), everything(whole))


def test_sam_without_a_closure_is_refused_where_lightning_scales_gradients(tmp_path):
    with pytest.raises(fs.InputError, match=r"SAM.step\(\) has no second gradient"):
        fitted(tmp_path, Module(kind=fs.SAM), **float16())


@pytest.mark.parametrize("evaluated", ["net", "module"])
@parts
def test_a_validation_among_accumulated_batches_is_at_w_whatever_part_it_calls(tmp_path, part, evaluated):
    module = Module(part=part, evaluated=evaluated)
    fitted(tmp_path, module, accumulate_grad_batches=2, val_check_interval=1)
    assert len(module.checked) == EPOCHS * BATCHES * BATCHES
    assert not any(module.checked)
    calm = fitted(tmp_path, Module(part=part, evaluated=evaluated), accumulate_grad_batches=2)
    assert same(everything(calm), everything(module))


class Manual(Module):
    """Its steps are its own: Lightning hands ``step`` a closure that does nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch, self.part))
        optimizer.step()
        self.lr_schedulers().step()


@parts
def test_manual_optimization_is_the_same_run(tmp_path, part):
    assert same(everything(fitted(tmp_path, Manual(part=part))), everything(fitted(tmp_path, Module(part=part))))


def test_manual_optimization_whose_forwards_no_hook_sees_is_told_of(tmp_path):
    class Detached(Manual):
        """Takes its gradients by parameters of its own, which are at w."""

        def loss(self, batch: Any, part: bool) -> Tensor:
            if not self.training:
                return super().loss(batch, part)
            own = {name: p.detach().clone().requires_grad_() for name, p in self.net.named_parameters()}
            outputs = torch.func.functional_call(self.net, own, batch[0])
            loss = nn.functional.cross_entropy(outputs, batch[1])
            gradients = torch.autograd.grad(loss, list(own.values()))
            for p, grad in zip(self.net.parameters(), gradients, strict=True):
                p.grad = grad
            return sum((p * 0).sum() for p in own.values())

    with pytest.warns(UserWarning, match="two steps without a perturbed forward"):
        fitted(tmp_path, Detached(), epochs=1)


def test_what_is_saved_is_w_with_its_zeros_and_the_masks(tmp_path):
    module = Module()
    fitted(tmp_path, module, epochs=1, callbacks=[every_epoch(tmp_path)])
    file = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert same(file["state_dict"], dict(module.state_dict()))
    masks = module.sparse.masks
    assert same(file["optimizer_states"][0]["sparse_training"]["masks"], masks)
    for name, mask in masks.items():
        assert file["state_dict"][name][~mask].count_nonzero() == 0
        assert 0 < int(mask.sum()) < mask.numel()
    plain = mlp()
    plain.load_state_dict({name.removeprefix("net."): value for name, value in file["state_dict"].items()})
    inputs = next(iter(loader()))[0]
    predictions = trainer(tmp_path).predict(module, loader())
    with torch.no_grad():
        assert same(predictions[0], plain.eval()(inputs))


class AfterEach(callbacks.Callback):
    """Saves after each batch of an accumulation, between forwards and steps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.perturbed = folder, 0

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        if module.optimizer.is_perturbed:
            self.perturbed += 1
            trainer.save_checkpoint(self.folder / "inside.ckpt")
            part = copy.deepcopy(module.net.state_dict())
            with module.optimizer.disabled():
                true = dict(module.state_dict())
            saved = torch.load(self.folder / "inside.ckpt", weights_only=True)["state_dict"]
            assert same(saved, true)
            assert same(dict(part), {name.removeprefix("net."): value for name, value in true.items()})


def test_a_checkpoint_among_accumulated_batches_holds_w(tmp_path):
    saves = AfterEach(tmp_path)
    fitted(tmp_path, Module(), callbacks=[saves], accumulate_grad_batches=3, epochs=1)
    assert saves.perturbed == 2


def test_a_test_of_an_earlier_checkpoint_is_of_that_checkpoint(tmp_path):
    """Masks have moved since, and Lightning loads the weights alone."""
    module = Module()
    last = trainer(tmp_path, callbacks=[every_epoch(tmp_path)])
    last.fit(module, loader(), loader())
    first = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert any(first["state_dict"][name][~mask].count_nonzero() for name, mask in module.sparse.masks.items())
    tested = last.test(module, loader(), ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert same(dict(module.state_dict()), first["state_dict"])
    fresh = trainer(tmp_path).test(Module(), loader(), ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert tested == fresh


def test_a_schedule_of_the_base_is_refused_by_lightning_itself(tmp_path):
    class OfTheBase(Module):
        """Its schedule is of the optimizer inside."""

        def configure_optimizers(self) -> Any:
            (optimizer,), _ = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer.base, 1)]

    with pytest.raises(Exception, match="optimizer that wasn't returned from `configure_optimizers`"):
        fitted(tmp_path, OfTheBase())


def test_a_second_fit_goes_on_with_masks_of_its_own(tmp_path):
    module = fitted(tmp_path, Module(method="static"))
    before = copied(module.sparse.masks)
    fitted(tmp_path, module)
    assert same(before, copied(module.sparse.masks))  # static takes the largest, which are those that are not zero
    assert_zero_outside(module, module.sparse, module.optimizer)
    assert module.sparse.steps_taken == STEPS


def test_a_second_fit_whose_masks_begin_anew_is_told_of(tmp_path):
    module = fitted(tmp_path, Module(method="rigl"))
    with pytest.warns(UserWarning, match=r"were set to 0.*masks=flatsparse.masks_from\(model\)"):
        fitted(tmp_path, module)


# -- averages of the weights ----------------------------------------------------------------------------------------------

averages = pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="this Lightning has no EMA callback")


def ema(*, zeroed: bool) -> Any:
    class SparseAverage(callbacks.EMAWeightAveraging):
        """Lightning's moving average, zero outside the masks."""

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, module, *args)
            module.sparse.zero_outside(self._average_model)

    return SparseAverage(decay=0.7) if zeroed else callbacks.EMAWeightAveraging(decay=0.7)


def outside(module: Module) -> int:
    return sum(int(p.detach()[~mask].count_nonzero()) for p, mask in masked(module, module.sparse).values())


@averages
@methods
def test_an_average_is_zero_outside_masks_by_one_line(tmp_path, method):
    """At the end of a fit Lightning copies the average into the model."""
    module = Module(method=method)
    fitted(tmp_path, module, callbacks=[ema(zeroed=method == "rigl"), every_epoch(tmp_path)])
    assert outside(module) == 0
    file = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    for name, mask in module.sparse.masks.items():
        assert file["state_dict"][name][~mask].count_nonzero() == 0
        assert file["current_model_state"][name][~mask].count_nonzero() == 0
    assert not same(dict(file["state_dict"]), dict(file["current_model_state"]))


@averages
@pytest.mark.filterwarnings("default:.*lie outside the masks")
def test_an_average_that_is_denser_than_the_model_is_told_of_when_it_is_saved(tmp_path):
    module = Module()
    last = trainer(tmp_path, callbacks=[ema(zeroed=False)])
    last.fit(module, loader(), loader())
    assert outside(module) > 0
    with pytest.warns(UserWarning, match=r"lie outside the masks.*training.zero_outside\(model\) before the save"):
        last.save_checkpoint(tmp_path / "end.ckpt")
    module.sparse.zero_outside(module)
    assert outside(module) == 0


@averages
@methods
def test_a_resumed_fit_with_an_average_is_the_one_that_never_stopped(tmp_path, method):
    whole = fitted(tmp_path, Module(method=method), callbacks=[ema(zeroed=True)])
    fitted(tmp_path, Module(method=method), epochs=2, callbacks=[ema(zeroed=True), every_epoch(tmp_path)])
    again = Module(method=method)
    last = trainer(tmp_path, callbacks=[ema(zeroed=True)])
    last.fit(again, loader(), loader(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert same(everything(again), everything(whole))


@averages
def test_an_average_of_a_module_that_holds_its_training_already_is_refused(tmp_path):
    """Lightning copies the module before ``configure_optimizers``, and so after it in a second fit."""
    module = fitted(tmp_path, Module(method="static"))
    with pytest.raises(fs.InputError, match="must not hold it as an attribute"):
        fitted(tmp_path, module, callbacks=[ema(zeroed=True)])
    del module.sparse
    fitted(tmp_path, module, callbacks=[ema(zeroed=True)])
    assert outside(module) == 0


@averages
def test_an_average_that_begins_late_is_sparse_where_it_has_begun(tmp_path):
    class Late(callbacks.EMAWeightAveraging):
        """Lightning's average, which copies the weights at its first update."""

    module = Module(method="static")
    fitted(tmp_path, module, callbacks=[Late(decay=0.7, update_starting_at_step=STEPS // 2)])
    assert outside(module) == 0
