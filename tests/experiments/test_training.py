import itertools
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.common.masks_file import load_masks
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build, describe
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.methods import METHODS
from tests.experiments.watchers import KillAfter, Killed

SMALL = RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=3, sparsity=0.9)


def small(method="rigl", **changes):
    return change(SMALL, method=method, sparsity=0.0 if method in {"dense", "chex"} else 0.9, **changes)


def timeless(result):
    return {k: v for k, v in result.to_json().items() if k not in ("seconds", "images_per_second")}


def test_a_run_leaves_the_folder_that_the_docs_promise(tmp_path):
    result = loop.train(small(sharpness="s2sam"), tmp_path / "run")
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "model.safetensors",
        "masks.safetensors",
        "result.json",
    }
    assert read_json(tmp_path / "run" / "result.json") == result.to_json()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert result.steps == result.gradient_evaluations == 12
    assert set(result.to_json()["flops"]) == {"train", "train_dense", "inference", "inference_dense"}
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["model"] == "digitnet"


def test_saved_weights_have_exactly_the_asked_sparsity_and_agree_with_the_saved_masks(tmp_path):
    loop.train(small(sharpness="s2sam"), tmp_path / "run")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    with safe_open(tmp_path / "run" / "masks.safetensors", "pt") as file:
        about, packed = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shapes = json.loads(about["shapes"])
    live = total = 0
    for name, bits in packed.items():
        size = int(np.prod(shapes[name]))
        mask = np.unpackbits(bits.numpy(), count=size, bitorder="little").reshape(shapes[name]).astype(bool)
        assert not weights[name].numpy()[~mask].any()
        live, total = live + mask.sum(), total + size
    assert total - live == round(0.9 * total)
    assert about["method"] == "rigl"


def every_pair():
    """All methods under all kinds of sharpness; in `make test` each of either once."""
    for method, sharpness in itertools.product(METHODS, SHARPNESS):
        usual = sharpness == "s2sam" or method == "rigl"
        yield pytest.param(method, sharpness, marks=() if usual else pytest.mark.slow)


@pytest.mark.parametrize(("method", "sharpness"), list(every_pair()))
def test_a_killed_and_resumed_run_equals_an_undisturbed_one(tmp_path, monkeypatch, method, sharpness):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    run = small(method, sharpness=sharpness)
    whole = loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAfter(2))
    again = loop.train(run, tmp_path / "killed", resume=True)
    ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("killed", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [f.name for f in (tmp_path / "killed").glob(".*")] == []
    assert timeless(whole) == timeless(again)
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == whole.epochs


def test_a_finished_run_is_returned_not_repeated(tmp_path):
    first = loop.train(SMALL, tmp_path / "run")
    written = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert loop.train(SMALL, tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == written


def test_another_run_is_neither_overwritten_nor_resumed(tmp_path):
    loop.train(SMALL, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="--resume"):
        loop.train(SMALL, tmp_path / "run")
    with pytest.raises(InputError, match=r"--lr 0\.1, not 0\.2"):
        loop.train(change(SMALL, lr=0.2), tmp_path / "run", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="something else"):
        loop.train(SMALL, tmp_path / "mine", resume=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(tmp_path):
    with pytest.raises(InputError, match="the loss became") as caught:
        loop.train(small(optimizer="adamw", lr=1e30), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists()


def test_sharpness_changes_nothing_but_the_optimizer():
    nets = [build(resolve(small(sharpness=name))) for name in SHARPNESS]
    for other in nets[1:]:
        assert torch.equal(nets[0].task.splits.train.samples.images, other.task.splits.train.samples.images)
        pairs = zip(nets[0].model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(
            torch.equal(a, b)
            for a, b in zip(nets[0].training.masks.values(), other.training.masks.values(), strict=True)
        )


def test_gradients_and_flops_are_counted_by_what_was_done(tmp_path):
    results = {name: loop.train(small("set", sharpness=name), tmp_path / name) for name in SHARPNESS}
    assert results["sam"].gradient_evaluations == 2 * results["none"].gradient_evaluations
    assert results["s2sam"].gradient_evaluations == results["none"].gradient_evaluations
    assert results["sam"].flops.train == pytest.approx(2 * results["none"].flops.train)
    assert results["s2sam"].flops.train == results["none"].flops.train
    ratio = results["none"].flops.inference / results["none"].flops.inference_dense
    assert results["none"].flops.train / results["none"].flops.train_dense == pytest.approx(ratio)


def test_rigl_pays_for_its_dense_gradients(tmp_path):
    run = small("rigl", every=3, until=1.0)  # due at steps 3, 6, 9 and 12 of 12
    flops = loop.train(run, tmp_path / "run").flops
    sparse = flops.inference
    expected = 64 * 3 * (3 * sparse) + 64 * (flops.inference_dense - sparse)  # a quarter of the batches is due
    assert flops.train == pytest.approx(expected, rel=1e-6)


def test_sparse_momentum_pays_for_dense_gradients_at_every_step(tmp_path):
    flops = loop.train(small("snfs", distribution="uniform"), tmp_path / "run").flops
    assert flops.train > 3 * 64 * flops.inference_dense  # one dense product of three, before anything sparse


@pytest.mark.parametrize("method", ["rigl", "set-itop", "rigl-itop", "dsr", "snfs", "mest"])
def test_the_command_line_period_leaves_ten_updates(method):
    parts = build(resolve(small(method, epochs=15)))
    assert sum(bool(parts.training.due(step)) for step in range(1, 61)) >= 10
    assert "masks updated 1" in describe(parts) or "masks updated 2" in describe(parts) or method == "snfs"


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_any_length_is_prepared_and_described_without_a_walk(method):
    parts = build(resolve(small(method, epochs=10**12)))
    assert parts.steps_per_epoch * parts.run.schedule.whole_epochs == 4 * 10**12
    assert bool(parts.training.plan.rules) == ("masks updated" in describe(parts))


@pytest.mark.parametrize("multiplier", [0.5, 5.0])
def test_longer_training_scales_everything_but_the_period(tmp_path, multiplier):
    once, longer = (build(resolve(small("rigl", epochs=10, multiplier=m))) for m in (1.0, multiplier))
    (short,), (long,) = (parts.training.plan.rules for parts in (once, longer))
    assert (short.when.period, short.when.until) == (3, 30)
    assert (long.when.period, long.when.until) == (3, 30 * multiplier)
    assert long.fraction.until == 30 * multiplier
    assert longer.schedule.T_max == 40 * multiplier
    result = loop.train(longer.run, tmp_path / "run")
    assert result.steps == 40 * multiplier


def test_a_pattern_holds_in_the_saved_weights_and_is_refused_where_it_cannot(tmp_path):
    fits = change(SMALL, sparsity=0.5, pattern=(2, 4), method="rigl", exclude=("0",))
    with pytest.raises(InputError, match="'mest' has no option 'pattern'"):
        loop.train(change(fits, method="mest"), tmp_path / "run")
    with pytest.raises(InputError, match="has 1 inputs, which pattern 2:4 does not divide"):
        loop.train(change(fits, exclude=()), tmp_path / "run")
    loop.train(fits, tmp_path / "run")
    masks, _ = load_masks(tmp_path / "run" / "masks.safetensors")
    for mask in masks.values():
        assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("method", ["static", "set", "rigl", "gmp"])
def test_whole_blocks_hold_in_the_saved_weights_and_a_resumed_run_keeps_them(tmp_path, method):
    run = change(SMALL, sparsity=0.7, pattern="block:4x2", method=method, exclude=("0", "11"), epochs=3)
    loop.train(run, tmp_path / "run")
    masks, _ = load_masks(tmp_path / "run" / "masks.safetensors")
    for mask in masks.values():
        blocks = mask.unflatten(1, (-1, 2)).unflatten(0, (-1, 4))
        assert torch.equal(blocks.all(3).all(1), blocks.any(3).any(1))
    assert load_run(tmp_path / "run").run.pruning.pattern == "block:4x2"
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "stopped", watcher=KillAfter(1))
    loop.train(run, tmp_path / "stopped", resume=True)
    again, _ = load_masks(tmp_path / "stopped" / "masks.safetensors")
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())


def test_the_exploration_rate_is_in_the_result(tmp_path):
    moved, still = (loop.train(small(m), tmp_path / m).exploration for m in ("set", "static"))
    assert moved > still == pytest.approx(0.1, abs=1e-4)


def test_bf16_and_channels_last_train_too(tmp_path):
    result = loop.train(small(precision="bf16", channels_last=True, sharpness="s2sam", epochs=6), tmp_path / "run")
    assert result.train_accuracy > 15


def test_the_configuration_is_written_with_everything_resolved(tmp_path):
    loop.train(small("rigl"), tmp_path / "run")
    settings = read_json(tmp_path / "run" / "config.json")["settings"]
    assert (settings["distribution"], settings["every"], settings["until"], settings["drop_fraction"]) == (
        "erk",
        2,
        0.75,
        0.3,
    )
    assert (settings["train_size"], settings["validation_size"]) == (64, 50)


def test_a_run_without_validation_images_writes_plain_json(tmp_path):
    result = loop.train(small("static", validation_size=0), tmp_path / "run")
    assert result.validation_accuracy is None
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_validation_images_are_looked_at_as_often_as_asked_and_at_the_end(tmp_path):
    seldom = loop.train(small(validate_every=2), tmp_path / "seldom")
    always = loop.train(small(), tmp_path / "always")
    files = [tmp_path / name / "metrics.jsonl" for name in ("seldom", "always")]
    looks = [[json.loads(line)["validation_accuracy"] for line in file.read_text().splitlines()] for file in files]
    assert looks[0] == [None, *looks[1][1:]]
    assert seldom.validation_accuracy == always.validation_accuracy


def test_the_health_of_the_topology_is_recorded_by_epoch_and_in_the_result(tmp_path):
    result = loop.train(small("set", every=2, until=1.0, drop_fraction=0.5), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["updates"] for record in records] == [2, 2, 2]
    assert all(0.3 < record["churn"] <= 0.5 for record in records)  # some of what is dropped at random comes back
    assert result.health.churn == pytest.approx(sum(record["churn"] for record in records) / 3)
    assert records[0]["exploration"] < records[2]["exploration"] == result.exploration
    masks, _ = load_masks(tmp_path / "run" / "masks.safetensors")
    dead = sum(int((~mask.flatten(1).any(1)).sum()) for mask in masks.values())
    assert (result.health.dead_filters, result.health.filters) == (dead, 32 + 64 + 64 + 10)
    assert records[2]["dead_filters"] == pytest.approx(dead / 170)
    still = loop.train(small("static"), tmp_path / "still").health
    assert still.churn is None
