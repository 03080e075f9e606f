"""Runs in rounds: what they record, what they resume, and the dense first round that they share."""

import json

import pytest
from safetensors.torch import load_file

from flatsparse.common.errors import InputError
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.watcher import Silent
from tests.experiments.test_training import KillAfter, Killed
from tests.helpers import same_tensors

rewinding = pytest.mark.parametrize("method", ["lth", "lrr"])


def run_of(method, **changes):
    settings = {"sparsity": 0.7, "drop_fraction": 0.3, "epochs": 2, "train_size": 64, "batch_size": 16, **changes}
    return RunConfig.of(method=method, validation_size=50, sharpness="s2sam", **settings)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(out / "model.safetensors")


def same_weights(one, other):
    return same_tensors(weights(one), weights(other))


@rewinding
def test_a_run_has_all_its_rounds_in_one_folder(tmp_path, method):
    result = loop.train(run_of(method), tmp_path)
    assert [r["round"] for r in records(tmp_path)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    rates = [r["lr"] for r in records(tmp_path)]
    assert rates == rates[:2] * 5  # the schedule starts anew
    assert result.rounds == rounds_of(resolve(run_of(method)))
    assert (result.rounds, result.epochs, result.steps, result.gradient_evaluations) == (5, 10, 40, 40)
    masks = build(resolve(run_of(method))).training.masks
    saved = weights(tmp_path)
    total = sum(m.numel() for m in masks.values())
    assert sum(int((saved[name] == 0).sum()) for name in masks) == round(0.7 * total)
    share = result.flops.train / result.flops.train_dense
    assert 1 + 4 * result.flops.inference / result.flops.inference_dense < share < 5


@rewinding
@pytest.mark.parametrize("epoch", [1, 2, 3, 8])
def test_a_run_killed_in_or_between_rounds_ends_as_if_undisturbed(tmp_path, monkeypatch, method, epoch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    run = run_of(method)
    loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAfter(epoch))
    loop.train(run, tmp_path / "killed", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


class Count(Silent):
    def __init__(self):
        self.epochs = []

    def finished_epoch(self, record):
        self.epochs.append(record.epoch)


@pytest.mark.parametrize("rewind", [0, 3])
def test_a_shared_dense_round_is_trained_once_and_changes_nothing(tmp_path, rewind):
    parent = tmp_path / "parent"
    early = {"rewind": rewind} if rewind else {}
    loop.train(run_of("lth" if rewind else "lrr", **early), tmp_path / "first", shared_rounds=parent)
    (file,) = parent.iterdir()
    run, count = run_of("lth", sparsity=0.5, **early), Count()
    loop.train(run, tmp_path / "shared", shared_rounds=parent, watcher=count)
    loop.train(run, tmp_path / "alone")
    assert count.epochs[0] == 3
    assert same_weights(tmp_path / "shared", tmp_path / "alone")
    assert len(records(tmp_path / "shared")) == len(records(tmp_path / "alone"))
    loop.train(run_of("lth", seed=1, **early), tmp_path / "other", shared_rounds=parent)
    assert len(list(parent.iterdir())) == 2
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="checksum"):
        loop.train(run, tmp_path / "damaged", shared_rounds=parent)


OWN = """
from dataclasses import dataclass, replace

from flatsparse.sparse.scores import each, magnitude
from flatsparse.sparse.distributions import uniform
from flatsparse.methods import LTH, SET
from flatsparse.sparse.plan import Plan


@dataclass(frozen=True)
class Late(LTH):
    "As lth, and its rounds are not named in our code."


@dataclass(frozen=True)
class Early:
    "A first round that is half sparse."

    def plan(self, sparsity, steps):
        return replace(LTH(0.3).plan(sparsity, steps), sparsity=0.5)


@dataclass(frozen=True)
class Moving:
    "A first round whose masks move."

    def plan(self, sparsity, steps):
        return replace(LTH(0.3).plan(sparsity, steps), rules=SET(every=2).plan(sparsity, steps).rules)


@dataclass(frozen=True)
class Kept:
    "A first round whose momentum is that of dense gradients."

    def plan(self, sparsity, steps):
        return replace(LTH(0.3).plan(sparsity, steps), momentum=0.9)


@dataclass(frozen=True)
class Rewound:
    "A step to rewind to that is no option."

    def plan(self, sparsity, steps):
        return LTH(0.3, rewind=3).plan(sparsity, steps)
"""


def own_run(file, name):
    file.write_text(OWN)
    drop = {} if name == "Late" else {"drop_fraction": None}
    return run_of(f"{file}:{name}", **drop)


@pytest.mark.parametrize(
    "name", ["Late", "Early", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Moving", "Kept", "Rewound"))]
)
def test_rounds_of_a_method_of_ones_own_share_a_first_round_only_when_it_is_the_same(tmp_path, name):
    parent, run = tmp_path / "parent", own_run(tmp_path / "own.py", name)
    loop.train(run_of("lth"), tmp_path / "first", shared_rounds=parent)
    count = Count()
    loop.train(run, tmp_path / "shared", shared_rounds=parent, watcher=count)
    loop.train(run, tmp_path / "alone")
    assert count.epochs[0] == (3 if name == "Late" else 1)
    assert [r["sparsity"] for r in records(tmp_path / "shared")] == [r["sparsity"] for r in records(tmp_path / "alone")]
    assert same_weights(tmp_path / "shared", tmp_path / "alone")
    assert rounds_of(resolve(run)) == json.loads((tmp_path / "alone" / "result.json").read_text())["rounds"] == 5


def test_code_of_a_method_that_does_not_plan_is_one_line_before_anything_is_run(tmp_path):
    (tmp_path / "odd.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Odd:\n    depth: int\n"
        "    def plan(self, sparsity, steps):\n        return 1 / 0\n"
    )
    with pytest.raises(InputError, match="does not run: TypeError"):
        resolve(run_of(f"{tmp_path}/odd.py:Odd"))
