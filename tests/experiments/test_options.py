"""Options of training, and the figures that a result has beside its accuracy."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments import recipes
from flatsparse.experiments.grid.store import key
from flatsparse.experiments.labels import color, label
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.learning_rate import start_schedule
from flatsparse.experiments.run.metrics import steps_to
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.experiments.tasks.class_scores import confusion, macro
from flatsparse.sam.directions import DIRECTIONS
from tests.experiments.watchers import KillAfter, Killed

SMALL = RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=3, sparsity=0.9)


def small(**changes):
    return change(SMALL, **changes)


def rates(run, steps_per_epoch=10):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, seen = start_schedule(run, optimizer, steps_per_epoch), []
    for _ in range(run.schedule.whole_epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_steps_go_down_to_a_tenth_at_each_milestone():
    assert rates(small(epochs=4, lr_schedule="step")) == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 10)
    published = rates(small(epochs=10, lr_schedule="step", milestones=(0.3, 0.7, 0.9), warmup=1))
    assert published[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert published[10:] == pytest.approx([1.0] * 20 + [0.1] * 40 + [0.01] * 20 + [0.001] * 10)


def test_the_rate_stays_or_falls_along_a_cosine_and_a_warm_up_multiplies():
    assert rates(small(lr_schedule="constant")) == [1.0] * 30
    plain, warm = rates(small()), rates(small(warmup=1))
    assert warm[10:] == pytest.approx(plain[10:])
    assert warm[:10] == pytest.approx([(i + 1) / 10 * rate for i, rate in enumerate(plain[:10])])
    assert rates(small(warmup=1, lr_schedule="constant", multiplier=2.0))[19:21] == [1.0, 1.0]
    assert rates(small(warmup=1, lr_schedule="constant", multiplier=2.0))[18] < 1


def test_a_later_round_starts_its_schedule_anew():
    parts = build(resolve(small(lr_schedule="step", warmup=1)))
    first = parts.optimizer.param_groups[0]["lr"]
    for _ in range(12):
        parts.optimizer.step()
        parts.schedule.step()
    assert parts.optimizer.param_groups[0]["lr"] != first
    start_schedule(parts.run, parts.optimizer, parts.steps_per_epoch)
    assert parts.optimizer.param_groups[0]["lr"] == first


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"milestones": (0.75, 0.5)}, "not rising shares"),
        ({"milestones": (0.5, 1.0)}, "not rising shares"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs momentum"),
        ({"optimizer": "adamw", "nesterov": True}, "has no --momentum or --nesterov"),
        ({"label_smoothing": 1.5}, "--label-smoothing"),
        ({"warmup": -1}, "--warmup"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(changes, line):
    with pytest.raises(InputError, match=line) as caught:
        resolve(small(**changes))
    assert "\n" not in str(caught.value)


def test_the_optimizer_is_the_one_asked_for():
    group = build(resolve(small(momentum=0.8, nesterov=True))).optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True)
    for sharpness in ("sam", "s2sam"):
        kept, freed = (
            build(resolve(small(sharpness=sharpness, mask_perturbation=on))).optimizer for on in (True, False)
        )
        assert tuple(o.mask_perturbation for o in (kept, freed)) == (True, False)


def test_images_are_augmented_as_their_data_set_is_unless_told_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 80), ("test", 20)):
        images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 4)
    folder = small(data=str(tmp_path), model="digitnet", train_size=60, validation_size=10)
    assert build(resolve(folder)).task.augmented
    assert not build(resolve(change(folder, augmentation=False))).task.augmented
    assert not build(resolve(SMALL)).task.augmented  # of digits


def test_smoothed_labels_are_the_training_loss_only(tmp_path):
    run = small(method="dense", sparsity=0.0, epochs=1, batch_size=64, lr=1e-9)
    plain, smooth = (loop.train(change(run, label_smoothing=s), tmp_path / str(s)) for s in (0.0, 0.3))
    losses = [read_json(tmp_path / s / "result.json")["train_loss"] for s in ("0.0", "0.3")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    noted = [
        (tmp_path / s / "metrics.jsonl").read_text().split('"train_loss": ')[1].split(",")[0] for s in ("0.0", "0.3")
    ]
    assert float(noted[1]) != pytest.approx(float(noted[0]), rel=1e-4)
    assert plain.test_loss == pytest.approx(smooth.test_loss, rel=1e-6)


def test_statistics_taken_anew_are_the_mean_over_training_batches(tmp_path):
    run = small(sharpness="s2sam", rho=0.5, epochs=2)
    for kind in ("training", "final"):
        loop.train(change(run, batch_norm=kind), tmp_path / kind)
    trained, renewed = (load_tensors(tmp_path / kind / "model.safetensors")[0] for kind in ("training", "final"))
    changed = {name for name in trained if not torch.equal(trained[name], renewed[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)
    parts = build(resolve(run))
    parts.model.load_state_dict(renewed)
    first = next(m for m in parts.model.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean(dim=(0, 2, 3))))
    with torch.no_grad():
        for batch in parts.task.splits.train.batches(run.optim.batch_size, seed=run.seed):
            parts.model.eval()(batch.content[0])
    hook.remove()
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)


def test_macro_scores_are_those_of_scikit_learn():
    source = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(200, 7, generator=source), torch.randint(5, (200,), generator=source)
    outputs[:, 6] -= 9  # a class that is neither there nor predicted; class 5 is predicted and not there
    found = macro(confusion(outputs, labels, 7))
    expected = precision_recall_fscore_support(
        labels, outputs.argmax(1), labels=range(5), average="macro", zero_division=0
    )
    assert list(found.values()) == pytest.approx([100 * value for value in expected[:3]])


def test_a_class_that_is_never_predicted_has_no_precision():
    outputs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert macro(confusion(outputs, torch.tensor([0, 1]), 2)) == pytest.approx(
        {"precision": 25, "recall": 50, "f1": 100 / 3}
    )


def test_steps_to_an_accuracy_are_those_of_the_first_epoch_that_has_it():
    records = [
        SimpleNamespace(step=10 * i, validation_accuracy=a) for i, a in enumerate([20.0, 60.0, 55.0, 71.0], start=1)
    ]
    assert [steps_to(records, level) for level in (20, 50, 60, 61, 72)] == [10, 20, 20, 40, None]
    assert steps_to([SimpleNamespace(step=1, validation_accuracy=None)], 50) is None


def test_a_result_has_the_gap_the_macro_scores_and_the_steps(tmp_path):
    result = loop.train(small(epochs=6), tmp_path / "run")
    assert result.generalization_gap == pytest.approx(result.train_accuracy - result.test_accuracy)
    assert result.macro["recall"] == pytest.approx(result.test_accuracy, abs=3)  # classes of nearly equal size
    assert set(result.steps_to) == {"50", "60", "70", "80", "90", "95"}
    unseen = loop.train(small(), tmp_path / "unseen", test=False)
    assert unseen.macro is None
    assert unseen.generalization_gap is None


def test_looksam_counts_the_gradients_that_it_took(tmp_path):
    run = small(method="set", batch_size=8, look_every=3)
    look, plain = (loop.train(change(run, sharpness=s), tmp_path / s) for s in ("looksam", "none"))
    assert look.gradient_evaluations == 24 + 8  # of 24 steps every third takes two
    assert look.flops.train == pytest.approx(plain.flops.train * 32 / 24)
    still = loop.train(change(run, sharpness="looksam", rho=0.0), tmp_path / "still")
    assert still.test_loss == plain.test_loss
    assert still.gradient_evaluations == 24


def test_stale_counts_the_share_of_the_samples_that_it_took_again(tmp_path):
    run = small(method="set", rho=0.5, train_size=60)  # batches of 16, 16, 16 and 12
    stale, plain = (loop.train(change(run, sharpness=s), tmp_path / s) for s in ("stale", "none"))
    assert stale.gradient_evaluations == 12 * 1.25
    assert change(run, sharpness="stale").passes == 1.25
    assert stale.flops.train == pytest.approx(plain.flops.train * 1.25)
    assert stale.test_loss != plain.test_loss
    tenth = loop.train(change(run, sharpness="stale", stale_share=0.01), tmp_path / "two")  # two samples at least
    assert tenth.gradient_evaluations == pytest.approx(12 + 3 * (3 * 2 / 16 + 2 / 12))
    still = loop.train(change(run, sharpness="stale", rho=0.0), tmp_path / "still")
    assert still.test_loss == plain.test_loss
    assert still.gradient_evaluations == 12
    assert read_json(tmp_path / "stale" / "result.json")["gradient_evaluations"] == 15
    with pytest.raises(InputError, match=r"--stale-share 0\.0 is not in"):
        resolve(change(run, stale_share=0.0))
    assert key(run) == key(change(run, stale_share=0.5)) != key(change(run, sharpness="stale", stale_share=0.5))


def test_a_stale_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    run = small(method="rigl", every=2, sharpness="stale", rho=0.5)
    whole = loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "run", watcher=KillAfter(2))
    assert loop.train(run, tmp_path / "run", resume=True).test_loss == whole.test_loss


@pytest.mark.parametrize(("sharpness", "passes"), [("sam", 2), ("s2sam", 1), ("looksam", 1 + 1 / 3)])
def test_a_late_radius_counts_the_gradients_that_it_took(tmp_path, sharpness, passes):
    run = small(method="set", batch_size=8, look_every=3, rho=0.5)
    late = change(run, sharpness=sharpness, rho_schedule="late", late_share=0.25)
    found, plain = (loop.train(one, tmp_path / one.sharpness) for one in (late, run))
    assert found.gradient_evaluations == 18 + 6 * passes  # of 24 steps the last six are perturbed
    assert late.passes == pytest.approx(found.gradient_evaluations / 24)
    assert found.flops.train == pytest.approx(plain.flops.train * late.passes)
    assert found.test_loss != plain.test_loss
    with pytest.raises(InputError, match=r"--late-share 0\.0 is not in"):
        resolve(change(late, late_share=0.0))


def test_a_loss_budget_is_for_what_goes_along_a_gradient(tmp_path):
    run = small(method="set", rho=0.5)
    found = {
        (sharpness, budget): loop.train(
            change(run, sharpness=sharpness, loss_budget=budget), tmp_path / f"{sharpness}-{budget}"
        )
        for sharpness, budget in [
            ("none", None),
            ("s2sam", 0.0),
            ("sam", 0.0),
            ("s2sam", 0.1),
            ("sam", 0.1),
            ("s2sam", None),
        ]
    }
    losses = {choice: result.test_loss for choice, result in found.items()}
    assert losses["none", None] == losses["s2sam", 0.0] == losses["sam", 0.0]
    assert len(set(losses.values())) == 4
    assert [found["sam", budget].gradient_evaluations for budget in (0.0, 0.1)] == [12, 24]
    assert change(run, sharpness="sam", loss_budget=0.0).passes == 1
    for kind in ("random", "looksam"):
        with pytest.raises(InputError, match=f"--loss-budget is for --sharpness sam and s2sam, .* not {kind}"):
            resolve(change(run, sharpness=kind, loss_budget=0.1))
    assert key(run) == key(change(run, loss_budget=0.1)) != key(change(run, sharpness="sam", loss_budget=0.1))


def test_a_share_of_late_steps_is_part_of_a_key_only_where_it_counts():
    run = small(sharpness="s2sam", late_share=0.3)
    assert key(run) == key(change(run, late_share=None))
    late = change(run, rho_schedule="late")
    assert key(late) != key(change(late, late_share=0.2)) == key(change(late, late_share=None))


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", ["s2sam", "sam"])
def test_a_compiled_run_ends_where_a_plain_one_does_and_its_folder_is_as_any(tmp_path, sharpness):
    run = small(sharpness=sharpness, rho=0.5, train_size=48, epochs=2)
    for compiled in (False, True, True):  # the second in one process is not refused
        folder = tmp_path / f"{compiled}"
        shutil.rmtree(folder, ignore_errors=True)
        loop.train(change(run, compile=compiled), folder)
    plain, ours = (load_tensors(tmp_path / str(c) / "model.safetensors")[0] for c in (False, True))
    assert plain.keys() == ours.keys()
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-2, atol=1e-3)
    loop.train(change(run, sharpness="none"), tmp_path / "none")
    other = load_tensors(tmp_path / "none" / "model.safetensors")[0]
    weight = max((n for n in plain if plain[n].ndim == 4), key=lambda n: plain[n].numel())
    assert (other[weight] - plain[weight]).norm() > 20 * (ours[weight] - plain[weight]).norm()


def test_sums_also_remove_channels_of_the_residual_stream():
    run = RunConfig.of(model="resnet20", method="chex", train_size=40, validation_size=20, batch_size=20, epochs=2)
    alone, all_groups = (build(resolve(change(run, sums=sums))) for sums in (False, True))
    assert "stage1.0.conv2.weight" not in rows_gone(alone)
    assert "stage1.0.conv2.weight" in rows_gone(all_groups)
    with pytest.raises(InputError, match="--sums cannot be asked of 'rigl'"):
        resolve(change(run, method="rigl", sums=True))


def test_which_channels_are_removed_and_when_can_be_chosen():
    run = RunConfig.of(model="resnet20", method="chex", train_size=40, validation_size=20, batch_size=20, epochs=2)
    published, alone = (build(resolve(change(run, explore=x))) for x in ("published", "removable"))
    assert "stage2.0.shortcut.0.weight" in rows_gone(published)
    assert "stage2.0.shortcut.0.weight" not in rows_gone(alone)
    assert build(resolve(run)).run.pruning.explore == "published"
    chosen = {"first_phase": "layer", "last_phase": "layer", "channel_offset": 0.0}
    parts = build(resolve(change(run, method="chase", **chosen)))
    assert [type(rule).__name__ for rule in parts.training.plan.rules] == [
        "PruneChannels",
        "PruneTo",
        "GrowTo",
        "DropAndGrow",
    ]
    for name, methods in {"explore": "chex or chase", "last_phase": "chase", "channel_offset": "chase"}.items():
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(InputError, match=f"{flag} cannot be asked of 'rigl', .* give --method {methods}"):
            resolve(change(run, method="rigl", **{name: {"explore": "removable", **chosen}[name]}))


def test_table_3_explores_what_the_authors_code_does():
    for cell in recipes.load("table3").cells("paper"):
        run = resolve(cell.run)
        assert run.pruning.explore == "published"
        assert (run.pruning.first_phase, run.pruning.last_phase) == (
            ("layer", "layer") if run.pruning.method == "chase" else (None, None)
        )
    laptop = {resolve(cell.run).pruning.last_phase for cell in recipes.load("table3").cells("laptop")}
    assert laptop == {"net", None}  # CIFAR stands in, and so does its script


def rows_gone(parts):
    """The weights of which the masks leave out a whole filter."""
    return {name for name, mask in parts.training.masks.items() if not mask.flatten(1).any(1).all()}


def test_every_direction_of_s2sam_can_be_asked_for_and_has_a_label_and_a_colour():
    choices = ["none", "sam", *("s2sam" if name == "previous" else name for name in DIRECTIONS), "looksam", "stale"]
    assert list(SHARPNESS) == choices
    assert all(SHARPNESS.values())
    assert all(label(name) and color(name) for name in choices)
