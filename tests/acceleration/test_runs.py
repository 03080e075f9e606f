"""`flatsparse train --accelerate`."""

import pytest
import torch

from flatsparse.acceleration import layers, measure
from flatsparse.common.errors import InputError
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.claims import check_same
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.resolve import resolve
from tests.experiments.watchers import KillAfter, Killed
from tests.helpers import same_tensors

NET = """
from torch import nn

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))
"""
SMALL = RunConfig.of(
    train_size=96, validation_size=50, batch_size=32, epochs=3, sparsity=0.9, method="rigl", every=2, sharpness="s2sam",
    device="cpu",
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """The calls of linear layers that are computed sparse, which all are here."""
    found = []
    plain = layers.linear
    monkeypatch.setattr(layers, "speedup", lambda kind: 2.0)
    monkeypatch.setattr(layers, "linear", lambda *args: found.append(args) or plain(*args))
    return found


def test_an_accelerated_run_ends_where_the_masked_one_does_and_resumes(tmp_path, calls):
    (tmp_path / "net.py").write_text(NET)
    run = change(SMALL, model=f"{tmp_path / 'net.py'}:net")
    masked = loop.train(run, tmp_path / "masked")
    assert not calls
    fast = loop.train(change(run, accelerate=True), tmp_path / "fast")
    assert len(calls) >= 2 * fast.steps
    ours, theirs = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("fast", "masked"))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    assert fast.test_loss == pytest.approx(masked.test_loss, rel=1e-3)
    assert fast.flops == masked.flops
    with pytest.raises(Killed):
        loop.train(change(run, accelerate=True), tmp_path / "stopped", watcher=KillAfter(2))
    loop.train(change(run, accelerate=True), tmp_path / "stopped", resume=True)
    again = load_tensors(tmp_path / "stopped" / "model.safetensors")[0]
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_a_resumed_run_keeps_to_the_forms_that_were_measured(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    run = change(SMALL, model=f"{tmp_path / 'net.py'}:net", accelerate=True)
    monkeypatch.setattr(measure, "_known", {})
    monkeypatch.setattr(measure, "_measured", lambda kind: 2.0)
    loop.train(run, tmp_path / "whole")
    measure._known.clear()
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "stopped", watcher=KillAfter(2))
    before = dict(measure._known)
    measure._known.clear()
    monkeypatch.setattr(measure, "_measured", lambda kind: 0.0)  # as it may come out, where both are about as fast
    loop.train(run, tmp_path / "stopped", resume=True)
    assert measure._known.items() >= before.items()
    ends = [load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("stopped", "whole")]
    assert same_tensors(*ends)


def test_convolutions_run_sparse_in_inspected_steps_too_so_that_a_resumed_run_ends_in_the_same_bits(tmp_path):
    run = change(SMALL, method="static", every=None, accelerate=True, model="digitnet", batch_size=48)
    loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "stopped", watcher=KillAfter(2))
    loop.train(run, tmp_path / "stopped", resume=True)
    ends = [load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("stopped", "whole")]
    assert same_tensors(*ends)


@pytest.mark.parametrize("other", [{"compile": True}, {"precision": "bf16"}])
def test_what_has_kernels_of_its_own_does_not_go_with_others(other):
    with pytest.raises(InputError, match="--accelerate computes in float32"):
        resolve(change(SMALL, accelerate=True, **other))


def test_a_record_from_before_there_was_the_choice_is_of_the_same_run():
    check_same({"lr": 0.1, "accelerate": False}, {"lr": 0.1}, "it")
    with pytest.raises(InputError, match="it holds work with --accelerate None, not True"):
        check_same({"lr": 0.1, "accelerate": True}, {"lr": 0.1}, "it")
