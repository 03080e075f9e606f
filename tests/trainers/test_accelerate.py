"""Accelerate trains a pruned model sparse and sharpness-aware by two lines, before or after `prepare`, and resumes it exactly."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

import flatsparse as fs
from tests.helpers import same, same_tensors
from tests.trainers.hugging_face import kinds, revived

accelerate = pytest.importorskip("accelerate")
STEPS, STOP = 8, 3
ORDERS = ("before", "after")  # of `prepare`
orders = pytest.mark.parametrize("order", ORDERS)
methods = pytest.mark.parametrize("method", ["static", "rigl"])
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
}


@pytest.fixture(autouse=True)
def _alone():
    """Accelerate keeps one state for a whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def pruned() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 3))
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", amount=0.7)
        prune.remove(layer, "weight")
    return model


def loader() -> torch.utils.data.DataLoader:
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 8, generator=source)
    return torch.utils.data.DataLoader(list(zip(inputs, inputs[:, 0].gt(0).long(), strict=True)), batch_size=4)


class Loop(NamedTuple):
    accelerator: Any
    model: Any
    optimizer: Any  # as prepared
    training: fs.SparseTraining
    batches: Any
    scheduler: Any

    def train(self, start: int = 0, stop: int = STEPS) -> Loop:
        """Take the steps after ``start``, of two batches each, up to ``stop``."""
        for number, (inputs, targets) in enumerate(self.batches):
            if not 2 * start <= number < 2 * stop:
                continue
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    loss = F.cross_entropy(self.model(inputs), targets)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
        return self

    def states(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "training", "scheduler")}


def sparse(model: nn.Module, optimizer: Any, method: str) -> fs.SparseTraining:
    options = {} if method == "static" else {"every": 2, "until": STEPS, "drop_fraction": 0.5}
    return fs.sparsify(model, optimizer, method, masks=fs.masks_from(model), steps=STEPS, **options)


def made(
    order: str = "before",
    method: str = "static",
    kind: Any = fs.S2SAM,
    base: str = "adamw",
    precision: str = "no",
    scaler: Any = None,
) -> Loop:
    accelerator = accelerate.Accelerator(mixed_precision=precision, gradient_accumulation_steps=2, cpu=True)
    if scaler is not None:  # a CPU gets none by itself
        accelerator.scaler, accelerator.native_amp = scaler, True
    model = pruned()
    optimizer = BASES[base](model.parameters())
    optimizer = optimizer if kind is None else kind(optimizer, rho=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    if order == "before":
        training = sparse(model, optimizer, method)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(), scheduler)
    if order == "after":
        training = sparse(model, optimizer, method)
    return Loop(accelerator, model, optimizer, training, batches, scheduler)


def plain(method: str, kind: Any, base: str, precision: str) -> tuple[nn.Module, fs.SparseTraining]:
    """The same loop by hand."""
    model = pruned()
    optimizer = BASES[base](model.parameters())
    optimizer = optimizer if kind is None else kind(optimizer, rho=0.3)
    training = sparse(model, optimizer, method)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    for number, (inputs, targets) in enumerate(loader()):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(inputs), targets)
        (loss / 2).backward()
        if number % 2:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model, training


@orders
@methods
@kinds
@pytest.mark.parametrize("base", BASES)
def test_a_prepared_loop_is_the_plain_one_bit_for_bit(order, method, kind, base):
    loop = made(order, method, kind, base).train()
    model, training = plain(method, kind, base, "no")
    assert same(loop.model.state_dict(), model.state_dict())
    assert same(loop.training.masks, training.masks)
    assert loop.training.steps_taken == STEPS
    assert revived(model, training.masks) == 0


@orders
@kinds
def test_bf16_is_prepared_too(order, kind):
    loop = made(order, "rigl", kind, precision="bf16").train()
    model, training = plain("rigl", kind, "adamw", "bf16")
    assert same(loop.training.masks, training.masks)
    # Accelerate gives outputs in float32, so that the loss is summed in another order of types.
    for p, q in zip(loop.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.1, atol=1e-2)
    assert revived(loop.model, loop.training.masks) == 0
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}


def test_without_the_two_lines_the_zeros_fill():
    accelerator = accelerate.Accelerator(cpu=True)
    model = pruned()
    masks = fs.masks_from(model)
    model, optimizer, batches = accelerator.prepare(model, BASES["adamw"](model.parameters()), loader())
    for inputs, targets in batches:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
    assert revived(model, masks) > 0.9 * sum(int((~mask).sum()) for mask in masks.values())


@orders
@methods
@kinds
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_load_state_continues_the_run_that_never_stopped(order, method, kind, precision, tmp_path):
    made(order, method, kind, precision=precision).train(stop=STOP).accelerator.save_state(str(tmp_path))
    whole = made(order, method, kind, precision=precision).train()
    again = made(order, method, kind, precision=precision)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*masks")
        again.accelerator.load_state(str(tmp_path))
        again.train(STOP)
    assert same(again.states(), whole.states())


@methods
def test_what_save_state_holds(method, tmp_path):
    loop = made("before", method).train(stop=STOP)
    loop.accelerator.save_state(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    assert all(weights[name][~mask].count_nonzero() == 0 for name, mask in loop.training.masks.items())
    saved = torch.load(tmp_path / "optimizer.bin", weights_only=True)
    assert same(saved["sparse_training"]["masks"], loop.training.masks)
    loop.accelerator.save_model(loop.model, str(tmp_path / "model"))
    masks = fs.masks_from(tmp_path / "model")
    assert set(masks) == set(loop.training.masks)
    assert not any((masks[name] & ~mask).any() for name, mask in loop.training.masks.items())


def test_a_training_may_be_registered_for_checkpointing(tmp_path):
    loop = made("after", "rigl").train(stop=STOP)
    loop.accelerator.register_for_checkpointing(loop.training)
    loop.accelerator.save_state(str(tmp_path))
    again = made("after", "rigl")
    again.accelerator.register_for_checkpointing(again.training)
    again.accelerator.load_state(str(tmp_path))
    assert same(again.states(), loop.states())


@orders
def test_evaluation_and_saving_inside_a_window_are_at_w(order, tmp_path):
    loop = made(order).train(stop=STOP)
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    inputs, targets = next(iter(loader()))
    loop.model.eval()
    with torch.no_grad():
        at_w = loop.model(inputs)
    loop.model.train()
    loss = F.cross_entropy(loop.model(inputs), targets)  # opens a window
    assert not same_tensors(dict(loop.model.named_parameters()), before)
    assert same_tensors(loop.accelerator.get_state_dict(loop.model), before)
    loop.accelerator.save_state(str(tmp_path))
    assert same_tensors(load_file(tmp_path / "model.safetensors"), before)
    loop.model.eval()
    with torch.no_grad():
        assert torch.equal(loop.model(inputs), at_w)
    loop.accelerator.backward(loss)
    loop.optimizer.step()


@orders
@methods
@kinds
def test_float16_with_a_scaler_that_skips_steps(order, method, kind, tmp_path):
    scale = 2.0**22
    loop = made(order, method, kind, precision="fp16", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    skipped, counts = [], []
    loop.model.register_forward_hook(lambda *_: counts.append(loop.training.steps_taken))
    half = torch.autocast("cpu", torch.float16)
    loop.model.forward = half(loop.model.forward)
    for step in range(STEPS):
        loop.train(step, step + 1)
        skipped.append(loop.optimizer.step_was_skipped)
        assert revived(loop.model, loop.training.masks) == 0
    assert 0 < sum(skipped) < STEPS
    assert loop.training.steps_taken == STEPS - sum(skipped)
    assert loop.training.sparsity == pytest.approx(0.7, abs=0.01)


@pytest.fixture
def group(tmp_path):
    """Processes that train together; here there is one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@orders
@pytest.mark.usefixtures("group")
def test_the_model_is_distributed(order):
    accelerator = accelerate.Accelerator(cpu=True)
    model = pruned()
    masks = fs.masks_from(model)
    optimizer = fs.S2SAM(BASES["adamw"](model.parameters()), rho=0.3)
    if order == "before":
        training = sparse(model, optimizer, "static")
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
    if order == "after":
        training = sparse(wrapped, optimizer, "static")
    perturbed = []
    for inputs, targets in loader():
        loss = F.cross_entropy(wrapped(inputs), targets)
        perturbed.append(optimizer.optimizer.is_perturbed)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    assert perturbed == [False] + [True] * (len(perturbed) - 1)
    assert list(training.masks) == list(masks)
    assert revived(model, masks) == 0


@orders
@pytest.mark.usefixtures("group")
def test_a_model_that_is_sharded_after_sparsify_is_told_of(order):
    """As `prepare` with FSDP2 does, which needs a GPU: it shards, and gives the optimizer the new parameters."""
    from torch.distributed.fsdp import fully_shard

    model = pruned()
    masks = fs.masks_from(model)
    optimizer = BASES["adamw"](model.parameters())
    if order == "before":
        sparse(model, optimizer, "static")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    if order == "after":
        fs.sparsify(model, optimizer, "static", masks=masks, steps=STEPS)
    inputs, targets = next(iter(loader()))
    F.cross_entropy(model(inputs), targets).backward()
    if order == "before":
        with pytest.raises(fs.InputError, match=r"'0.weight' was replaced .* call sparsify after that"):
            optimizer.step()
        return
    optimizer.step()
    weights = {name: model.get_parameter(name).full_tensor() for name in masks}
    assert all(weights[name][~mask].count_nonzero() == 0 for name, mask in masks.items())


@orders
@methods
@kinds
def test_the_doctor_finds_nothing(order, method, kind):
    loop = made(order, method, kind)
    assert fs.doctor(loop.model, loop.optimizer, loop.training) == []
    with fs.watching(loop.model, loop.optimizer, loop.training) as findings:
        loop.train()
    assert list(findings) == []


@pytest.mark.parametrize("kind", [fs.S2SAM, fs.SAM])
@pytest.mark.parametrize("base", BASES)
def test_a_prepared_base_is_refused_in_one_line_with_the_cure(kind, base):
    """Its steps would be taken at every batch of an accumulation, and not where the scaler skips one."""
    optimizer = accelerate.Accelerator(cpu=True).prepare(BASES[base](pruned().parameters()))
    with pytest.raises(fs.InputError, match=r"\AAcceleratedOptimizer .*give the optimizer in its 'optimizer', .*\Z"):
        kind(optimizer)


def test_a_second_training_on_a_prepared_optimizer_is_refused():
    loop = made("after")
    with pytest.raises(fs.InputError, match="trains sparsely already"):
        sparse(loop.model, loop.optimizer, "static")
    loop.training.detach()
    sparse(loop.model, loop.optimizer, "static")


def test_what_is_saved_of_a_sparse_training_loads_safely(tmp_path):
    made("after", "rigl").train(stop=STOP).accelerator.save_state(str(tmp_path))
    for file in ("optimizer.bin", "scheduler.bin"):
        assert torch.load(tmp_path / file, weights_only=True)
