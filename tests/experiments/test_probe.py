import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json_lines
from flatsparse.experiments.report import pages
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.checkpoint import Progress
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.probe import Probe
from flatsparse.experiments.run.resolve import resolve
from tests.experiments.test_training import KillAfter, Killed

SMALL = RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=2, sparsity=0.9)


def timeless(result):
    other = ("seconds", "images_per_second", "files")  # of which config.json names the probe
    return {k: v for k, v in result.to_json().items() if k not in other}


@pytest.mark.parametrize(
    "sharpness", ["s2sam", *(pytest.param(s, marks=pytest.mark.slow) for s in ("none", "sam", "random"))]
)
def test_probes_change_no_bit_of_a_run(tmp_path, sharpness):
    run = change(SMALL, sharpness=sharpness)
    plain = loop.train(run, tmp_path / "plain")
    probed = loop.train(change(run, probe="every=4"), tmp_path / "probed")
    ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("probed", "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless(plain) == timeless(probed)
    assert [record["step"] for record in read_json_lines(tmp_path / "probed" / "probes.jsonl")] == [4, 8]
    assert not (tmp_path / "plain" / "probes.jsonl").exists()


def test_a_resumed_run_has_the_probes_of_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    run = change(SMALL, sharpness="s2sam", probe="every=4")
    loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAfter(1))
    loop.train(run, tmp_path / "killed", resume=True)
    whole, killed = ((tmp_path / folder / "probes.jsonl").read_text() for folder in ("whole", "killed"))
    assert whole == killed


def stepped(**changes):
    """A run two steps in, its gradients still there, and a look at it."""
    parts = build(resolve(change(SMALL, sharpness="s2sam", rho=0.1, **changes)))
    parts.net.train()
    for first in (0, 16):
        train = parts.task.splits.train.samples
        images = (train.images[first : first + 16].permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
        parts.optimizer.zero_grad()
        F.cross_entropy(parts.net(images), train.labels[first : first + 16]).backward()
        parts.optimizer.step()
    return parts, Probe(1, parts).measure(parts, step=2)


def test_gains_are_what_the_plain_form_finds_on_the_live_weights():
    parts, seen = stepped()
    probe = Probe(1, parts)
    probe.model.load_state_dict(parts.model.state_dict())
    probe.model.train()
    named = dict(probe.model.named_parameters())
    true = {name: p.detach().clone() for name, p in named.items()}
    used = {name: p.grad for name, p in parts.model.named_parameters()}
    masks = parts.training.masks

    def rise(along, inputs, targets):
        along = {name: d * masks.get(name, 1) for name, d in along.items()}
        length = math.sqrt(sum(float(d.square().sum()) for d in along.values()))
        with torch.no_grad():
            before = float(F.cross_entropy(probe.model(inputs), targets))
            for name, p in named.items():
                p.copy_(true[name] + 0.1 / length * along[name])
            after = float(F.cross_entropy(probe.model(inputs), targets))
            for name, p in named.items():
                p.copy_(true[name])
        return after - before

    own, previous = [], []
    for inputs, targets in probe.batches:
        loss = F.cross_entropy(probe.model(inputs), targets)
        slopes = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        own.append(rise(slopes, inputs, targets))
        previous.append(rise(used, inputs, targets))
    assert len(own) == 4
    assert seen["gain"]["sam"] == pytest.approx(sum(own) / 4, rel=1e-3)
    assert seen["gain"]["previous"] == pytest.approx(sum(previous) / 4, rel=1e-3)


def test_what_is_seen_is_in_order():
    """The ball holds SAM's step, SAM's own gradient beats noise, and the live weights are a part of all."""
    _, seen = stepped()
    assert seen["gain"]["worst"] >= seen["gain"]["sam"] > seen["gain"]["random"]
    assert seen["gain"]["sam"] > seen["gain"]["previous"]
    assert -1 <= seen["cosine"] <= 1
    assert seen["curvature"]["live"]["largest"] <= seen["curvature"]["all"]["largest"] * 1.02
    assert seen["curvature"]["live"]["weights"] < seen["curvature"]["all"]["weights"]


def test_a_loss_that_is_not_finite_is_not_looked_at():
    parts, _ = stepped()
    progress = Progress()
    with torch.no_grad():
        next(parts.model.parameters()).fill_(float("nan"))
    Probe(1, parts)(parts, progress)
    assert progress.probes == []


def test_the_report_shows_the_probes(tmp_path):
    run = resolve(change(SMALL, epochs=1, probe="every=2"))
    text = pages.write_run(run, loop.train(run, tmp_path / "run"), tmp_path / "run").read_text()
    assert "Around the weights" in text
    assert "--probe every=2" in text


def test_a_period_below_one_is_refused():
    with pytest.raises(InputError, match=r"--probe .every=0. is not"):
        resolve(change(SMALL, probe="every=0"))
