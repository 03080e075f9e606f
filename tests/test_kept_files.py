"""Files that earlier versions wrote still load, and what was half done goes on; ``kept/README.md`` says how each was made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.cli import main
from flatsparse.common.json_files import read_json, read_json_lines
from flatsparse.common.masks_file import load_masks
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.comparison_table import Table
from flatsparse.experiments.run.load import load_run
from flatsparse.sam.looksam import LookSAM
from tests.helpers import adamw, assert_zero_outside, copied, image_loss, same, sgd, tiny_net

KEPT = Path(__file__).parent / "kept"
RUN = (
    "train --train-size 200 --validation-size 40 --batch-size 20 --epochs 4 --lr 0.1 --method rigl --sparsity 0.97"
    " --sharpness s2sam --rho 0.1 --device cpu"
)
COMPARISON = (
    "compare --train-size 200 --validation-size 40 --batch-size 20 --epochs 2 --lr 0.1 --method rigl --sparsity 0.97"
    " --sharpness s2sam --rhos s2sam 0.1 --label-noise 0 --seeds 2 --jobs 1 --device cpu"
)
RECIPE = "reproduce noise --scale smoke --only RigL*20%* --seeds 1 --jobs 1 --device cpu"

STEPS, STOP, END = 24, 7, 12  # of the run; where its state was kept; how far its losses are known
HALVES = {"drop_fraction": 0.5, "sparsity": 0.8}
STATES = {
    "rigl-s2sam": ("rigl", {"sparsity": 0.8, "every": 3}, lambda p: fs.S2SAM(sgd(p), rho=0.1)),
    "rigl-scheduled": (
        "rigl",
        {"sparsity": 0.8, "every": 3},
        lambda p: fs.S2SAM(sgd(p), rho=fs.schedules.InverseSqrt(1.0)),
    ),
    "rigl-looksam": ("rigl", {"sparsity": 0.8, "every": 3}, lambda p: LookSAM(sgd(p), rho=0.1, every=3)),
    "set-compact": (
        "set",
        {"sparsity": 0.8, "every": 3},
        lambda p: fs.S2SAM(sgd(p), rho=0.1, direction="random", compact=True),
    ),
    "gmp-average": ("gmp", {"sparsity": 0.8, "every": 3}, lambda p: fs.S2SAM(adamw(p), rho=0.1, direction="average")),
    "lth-s2sam": ("lth", HALVES, lambda p: fs.S2SAM(sgd(p), rho=0.1)),
    "chex-s2sam": ("chex", {"explore": "removable", "every": 3}, lambda p: fs.S2SAM(sgd(p), rho=0.1)),
    "chase-sam": ("chase", {"sparsity": 0.8, "every": 3}, lambda p: fs.SAM(sgd(p), rho=0.1)),
}


def kept(name: str, place: Path) -> Path:
    """A copy of a folder that was kept, since what reads it may write there."""
    pytest.importorskip("sklearn")
    folder = place / name
    shutil.unpack_archive(KEPT / f"{name}.zip", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def unchanged(folder: Path, before: dict[str, bytes]) -> bool:
    """Return if every file that was there is as it was; there may be more."""
    return {name: data for name, data in contents(folder).items() if name in before} == before


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_read(tmp_path):
    run = load_run(kept("finished-run", tmp_path))
    assert (run.run.pruning.method, run.run.sharpness, run.run.rho, run.run.pruning.sparsity) == (
        "rigl",
        "s2sam",
        0.1,
        0.97,
    )
    assert sum(int(mask.sum()) for mask in run.masks.values()) == 1687
    for name, mask in run.masks.items():
        weight = run.model.get_parameter(name).detach()
        assert not weight[~mask].any()
        assert weight[mask].any()
    test = run.task.splits.test.samples
    with torch.no_grad():
        outputs = run.model(test.images.permute(0, 3, 1, 2).float())
    assert len(outputs) == len(test.labels) == 797


def test_a_finished_run_that_is_asked_for_again_is_told_and_not_trained(tmp_path, capsys):
    folder = kept("finished-run", tmp_path)
    before = contents(folder)
    main([*RUN.split(), "--resume", "--out", str(folder)])
    assert "test accuracy 41.78 %" in capsys.readouterr().out
    assert unchanged(folder, before)


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(tmp_path, capsys):
    folder = kept("finished-run", tmp_path)
    with pytest.raises(SystemExit) as end:
        main([*RUN.split(), "--rho", "0.2", "--resume", "--out", str(folder)])
    assert end.value.code == 2
    assert "--rho" in capsys.readouterr().err


def test_a_finished_run_is_exported_with_the_accuracy_it_had(tmp_path):
    folder = kept("finished-run", tmp_path)
    main(["export", str(folder), "--format", "dense", "masks"])
    record = read_json(folder / "export" / "export.json")
    assert record["run"]["accuracy"] == pytest.approx(41.78168130489335)
    assert record["formats"]["dense"]["accuracy"] == pytest.approx(41.78168130489335, abs=0.3)


def test_a_run_that_was_killed_goes_on_to_the_end_it_would_have_had(tmp_path):
    folder, whole = kept("unfinished-run", tmp_path), kept("finished-run", tmp_path)
    assert len(read_json_lines(folder / "metrics.jsonl", {})) == 2
    first = (folder / "metrics.jsonl").read_text().splitlines()
    main([*RUN.split(), "--resume", "--out", str(folder)])
    assert (folder / "metrics.jsonl").read_text().splitlines()[:2] == first
    ours, theirs = (read_json(place / "result.json") for place in (folder, whole))
    for name in ("steps", "epochs", "gradient_evaluations", "sparsity", "rho"):
        assert ours[name] == theirs[name], name
    # Processors differ in the last bits, so that two gradients that are almost equal may change places.
    for name in ("train_loss", "validation_loss", "test_loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    masks, wanted = (load_masks(place / "masks.safetensors")[0] for place in (folder, whole))
    assert list(masks) == list(wanted)
    odd = sum(int((mask != wanted[name]).sum()) for name, mask in masks.items())
    assert odd <= 0.005 * sum(int(mask.sum()) for mask in wanted.values())
    weights, theirs = (load_tensors(place / "model.safetensors")[0] for place in (folder, whole))
    assert {n: (t.dtype, t.shape) for n, t in weights.items()} == {n: (t.dtype, t.shape) for n, t in theirs.items()}


def still_there(saved: object, now: object) -> bool:
    """Return if a JSON value holds all that another one holds; there may be more keys."""
    if isinstance(saved, dict):
        return isinstance(now, dict) and all(key in now and still_there(saved[key], now[key]) for key in saved)
    if isinstance(saved, list):
        return isinstance(now, list) and len(saved) == len(now) and all(map(still_there, saved, now))
    return saved == (pytest.approx(now, rel=1e-9) if isinstance(saved, float) else now)


def test_a_comparison_that_is_finished_is_read_and_not_run_again(tmp_path, capsys):
    folder = kept("comparison", tmp_path)
    before, saved = contents(folder), read_json(folder / "compare.json")
    main([*COMPARISON.split(), "--resume", "--out", str(folder)])
    assert "+3.20" in capsys.readouterr().out
    del before["compare.json"]
    assert unchanged(folder, before)
    now = read_json(folder / "compare.json")
    assert still_there(saved, now)
    (old,), (new,) = ([Table.from_json(table) for table in record["tables"]] for record in (saved, now))
    assert [row.by_seed for row in old.rows] == [row.by_seed for row in new.rows]
    for run in sorted((folder / "runs").iterdir()):
        assert load_run(run).result.epochs == 2


def test_a_grid_finds_its_finished_runs_by_their_keys(tmp_path, capsys):
    store = kept("store", tmp_path)
    runs = sorted((store / "runs").iterdir())
    before = {name: data for name, data in contents(store).items() if name.startswith("runs")}
    assert all(load_run(folder).run.label_noise == 0.2 for folder in runs)
    main([*RECIPE.split(), "--out", str(store)])
    assert "74.28" in capsys.readouterr().out
    assert sorted((store / "runs").iterdir()) == runs
    assert {name: data for name, data in contents(store).items() if name.startswith("runs")} == before


# -- states and masks -------------------------------------------------------------------------------------------------


def made(name: str, net: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, fs.SparseTraining]:
    method, options, wrap = STATES[name]
    model = tiny_net(net)
    optimizer = wrap(model.parameters())
    return model, optimizer, fs.sparsify(model, optimizer, method, steps=STEPS, **options)


def losses(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: fs.SparseTraining, start: int, end: int
) -> list:
    """The loss of each step from the one after ``start``, as its first forward has it; rounds begin at steps 5 and 9."""
    told = []
    for step in range(start + 1, end + 1):
        if training.rounds > 1 and step in (5, 9):
            training.next_round()
        passes: list[float] = []

        def closure(step: int = step, passes: list[float] = passes) -> torch.Tensor:
            optimizer.zero_grad()
            loss = image_loss(model, step)
            loss.backward()
            passes.append(loss.item())
            return loss

        if isinstance(optimizer, fs.SAM):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        told.append(passes[0])
    return told


def losses_that_followed() -> dict[str, list[float]]:
    lines = (line.split() for line in (KEPT / "losses.txt").read_text().splitlines())
    return {name: [float(loss) for loss in row] for name, *row in lines}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_was_kept_goes_on_as_it_did(name):
    file = torch.load(KEPT / f"{name}.pt", weights_only=True)
    model, optimizer, training = made(name, net=1)
    for part, state in ((model, "model"), (optimizer, "optimizer"), (training, "training")):
        part.load_state_dict(file[state])
    assert training.steps_taken == STOP
    before = copied(training.masks)
    assert before
    assert losses(model, optimizer, training, STOP, END) == pytest.approx(losses_that_followed()[name], rel=1e-4)
    assert not same(before, training.masks)
    assert_zero_outside(model, training, optimizer)


def test_masks_that_were_kept_are_read():
    masks, about = fs.load_masks(KEPT / "masks.safetensors")
    assert (about["method"], about["step"]) == ("rigl", str(STOP))
    model = tiny_net()
    training = fs.sparsify(model, sgd(model.parameters()), "static", masks=masks, steps=10)
    assert same(copied(training.masks), masks)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"0.weight": 24, "3.weight": 37, "7.weight": 68}
