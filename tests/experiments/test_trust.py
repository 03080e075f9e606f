"""Runs that meet damage, kills and missing folders."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from flatsparse.common.checkpoints import save_state
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, with_checksum, write_json
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.experiments.claims import alone_in
from flatsparse.experiments.run import epoch, loop
from flatsparse.experiments.run.checkpoint import load_checked
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.folder import read_metrics, read_probes, read_result
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.watcher import Silent

RUN = RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=4, sparsity=0.9, sharpness="s2sam")


class Killed(BaseException):
    """Stands for a kill between two epochs."""


class After(Silent):
    """Does something after an epoch."""

    def __init__(self, epoch, act):
        self.epoch, self.act = epoch, act

    def finished_epoch(self, record):
        if record.epoch == self.epoch:
            self.act()


def kill():
    raise Killed


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run's folder after three of its four epochs."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        loop.train(RUN, tmp_path / "run", watcher=After(3, kill))
    return tmp_path / "run"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_kill_between_keeping_the_last_checkpoint_and_writing_the_next_leaves_nothing_behind(stopped, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)  # so that the next checkpoint is the last
    (stopped / "checkpoint.previous.pt").unlink()
    os.link(stopped / "checkpoint.pt", stopped / "checkpoint.previous.pt")
    loop.train(RUN, stopped, resume=True)
    assert not list(stopped.glob(".*"))
    assert not (stopped / "checkpoint.previous.pt").samefile(stopped / "checkpoint.pt")


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def no_links(*names):
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    loop.train(RUN, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.previous.pt").is_file()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(stopped, tmp_path):
    whole = loop.train(RUN, tmp_path / "whole")
    flip(stopped / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt' is damaged"):
        loop.train(RUN, stopped, resume=True)
    (stopped / "checkpoint.previous.pt").replace(stopped / "checkpoint.pt")
    again = loop.train(RUN, stopped, resume=True)
    assert again.test_accuracy == whole.test_accuracy
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (stopped, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_damaged_configuration_or_result_is_named(stopped):
    flip(stopped / "config.json")
    with pytest.raises(InputError, match=r"config\.json' is damaged"):
        loop.train(RUN, stopped, resume=True)


def test_a_damaged_result_is_named(tmp_path):
    loop.train(RUN, tmp_path / "run")
    flip(tmp_path / "run" / "result.json")
    with pytest.raises(InputError, match=r"result\.json' is damaged"):
        loop.train(RUN, tmp_path / "run", resume=True)


def test_a_damaged_curve_of_a_stopped_run_is_written_anew_from_the_checkpoint(stopped):
    whole = (stopped / "metrics.jsonl").read_text()
    (stopped / "metrics.jsonl").write_text("half a li")
    loop.train(RUN, stopped, resume=True)
    assert (stopped / "metrics.jsonl").read_text().startswith(whole)


def test_a_checkpoint_of_another_run_is_refused_with_the_first_difference(stopped, tmp_path, monkeypatch):
    other = change(RUN, lr=0.2)
    with pytest.raises(Killed):
        loop.train(other, tmp_path / "other", watcher=After(1, kill))
    shutil.copy(stopped / "checkpoint.pt", tmp_path / "other" / "checkpoint.pt")
    with pytest.raises(InputError, match=r"--lr 0\.1, not 0\.2"):
        loop.train(other, tmp_path / "other", resume=True)


def test_a_folder_removed_under_a_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(InputError, match="cannot write") as caught:
        loop.train(RUN, tmp_path / "run", watcher=After(2, lambda: shutil.rmtree(tmp_path / "run")))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_goes_on(stopped, tmp_path, monkeypatch):
    before = (stopped / "checkpoint.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left") as caught:
            loop.train(RUN, stopped, resume=True)
    assert "\n" not in str(caught.value)
    assert (stopped / "checkpoint.pt").read_bytes() == before
    assert loop.train(RUN, stopped, resume=True).steps == 16


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    train_epoch = loop.train_epoch

    def diverging(parts, progress, *others):
        record = train_epoch(parts, progress, *others)
        return dataclasses.replace(record, train_loss=float("inf")) if progress.epoch == 3 else record

    monkeypatch.setattr(loop, "train_epoch", diverging)
    with pytest.raises(InputError, match=r"inf in epoch 3.*checkpoint is kept"):
        loop.train(RUN, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["epoch"] == 2


def test_a_run_that_diverges_within_an_epoch_ends_there_and_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch, "LOOK_EVERY", 2)
    step, taken = epoch.take_step, []

    def diverging(parts, batch):
        found = step(parts, batch)
        taken.append(len(taken) + 1)
        return dataclasses.replace(found, losses=found.losses * math.inf) if len(taken) > 5 else found

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(epoch, "take_step", diverging)
        with pytest.raises(
            InputError,
            match=rf"\Athe loss became inf in epoch 2: lower --lr 0\.1 or --rho 0\.05, with another --out; .* kept in {run}\Z",
        ):
            loop.train(RUN, run)
    assert taken == [1, 2, 3, 4, 5, 6]  # of 16
    assert loop.train(change(RUN, lr=0.05), tmp_path / "other").steps == 16
    assert loop.train(RUN, run, resume=True).steps == 16  # what made it diverge has passed


def test_a_huge_loss_is_a_number_like_any_other(tmp_path):
    wild = RunConfig.of(
        train_size=64,
        validation_size=50,
        batch_size=64,
        epochs=1,
        method="dense",
        lr=1e4,
        momentum=0.0,
    )
    result = loop.train(wild, tmp_path / "run")
    assert 1e3 < result.train_loss < math.inf
    assert json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=pytest.fail)["steps"] == 1
    assert load_run(tmp_path / "run")


# -- what damage says, and what else may be amiss -------------------------------------------------------------------


def test_a_damaged_checkpoint_s_message_names_the_good_one_before_it(stopped):
    flip(stopped / "checkpoint.pt")
    told = (
        rf"checkpoint\.pt' is damaged: rename '{stopped}/checkpoint\.previous\.pt', which is whole, .* after epoch 2\Z"
    )
    with pytest.raises(InputError, match=told):
        loop.train(RUN, stopped, resume=True)
    flip(stopped / "checkpoint.previous.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt' is damaged .*: restore it from a copy") as caught:
        loop.train(RUN, stopped, resume=True)
    assert "previous" not in str(caught.value)


def test_a_checkpoint_that_is_gone_does_not_make_the_run_begin_anew(stopped):
    (stopped / "checkpoint.pt").unlink()
    with pytest.raises(InputError, match=r"checkpoint\.pt' is gone: rename .*previous"):
        loop.train(RUN, stopped, resume=True)


def test_a_checkpoint_of_something_else_is_named(stopped):
    state = load_checked(stopped / "checkpoint.pt")
    progress = state["progress"]
    for spoilt in (
        {**state, "model": {}},
        {**state, "progress": {"colour": "red"}},
        {**state, "progress": {**progress, "epoch": "three"}},
        {**state, "training": {**state["training"], "steps_taken": "many"}},
        {**state, "progress": {**progress, "records": progress["records"][:2]}},
        {k: v for k, v in state.items() if k != "training"},
    ):
        save_state(stopped / "checkpoint.pt", spoilt)
        with pytest.raises(InputError, match=r"\A[^\n]*checkpoint\.pt' is damaged[^\n]*\Z"):
            loop.train(RUN, stopped, resume=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two finished runs that differ in their seed."""
    place = tmp_path_factory.mktemp("finished")
    gain = dict.fromkeys(("worst", "sam", "previous", "random"), 0.1)
    seen = {"rho": 0.05, "gain": gain, "curvature": {"all": {"largest": 1.0}, "live": {"largest": 1.0}}}
    for seed, name in enumerate(("run", "other")):
        with pytest.MonkeyPatch.context() as patch:  # of what takes its time
            found = {**seen, "cosine": seed / 2}
            patch.setattr(loop.Probe, "measure", lambda self, parts, step, found=found: {"step": step, **found})
            loop.train(change(RUN, probe="every=8", seed=seed), place / name)
    return place


@pytest.fixture
def done(finished, tmp_path):
    return shutil.copytree(finished / "run", tmp_path / "run")


@pytest.mark.parametrize("name", ["metrics.jsonl", "probes.jsonl"])
def test_a_curve_cut_at_a_line_s_end_is_named(done, name):
    run, lines = change(RUN, probe="every=8"), (done / name).read_text().splitlines(keepends=True)
    assert loop.train(run, done, resume=True) == read_result(done)
    for left in {0, 1, len(lines) - 1}:
        (done / name).write_text("".join(lines[:left]))
        with pytest.raises(InputError, match=rf"{name}' is damaged \(it has {left} of {len(lines)} "):
            loop.train(run, done, resume=True)
    (done / name).unlink()
    loop.train(run, done, resume=True)  # as the message says: from the checkpoint
    assert (done / name).read_text() == "".join(lines)
    assert len(read_metrics(done, read_result(done))) == 4
    assert len(read_probes(done, read_result(done), 2)) == 2


FILES = ("config.json", "metrics.jsonl", "probes.jsonl", "model.safetensors", "masks.safetensors")


@pytest.mark.parametrize("name", [*FILES, "result.json"])
def test_a_file_of_another_run_is_named_and_not_used(done, finished, name):
    read_whole(done)
    shutil.copy(finished / "other" / name, done / name)
    named = "result.json" if name == "config.json" else name  # which of these two is another's cannot be known
    with pytest.raises(
        InputError, match=rf"{named}' is damaged \(it is of another run than the (config|result)\.json "
    ):
        read_whole(done)
    if name != "config.json":  # which says so itself
        write_json(done / "result.json", {**read_json(done / "result.json"), "files": {}})  # as results once were
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flatsparse.experiments.run.load._model", lambda *parts: torch.nn.Linear(1, 1))
            read_whole(done)


def read_whole(folder):
    run = load_run(folder)
    return run, read_metrics(folder, run.result), read_probes(folder, run.result)


def test_a_result_has_a_hash_of_each_file_that_is_the_same_for_equal_runs(done, tmp_path):
    files = read_result(done).files
    assert set(files) == set(FILES)
    assert all(len(digest) == 64 for digest in files.values())
    plain = change(RUN, workers=0, data_dir=tmp_path)  # which change no result
    for name, run in (("a", RUN), ("b", plain)):
        loop.train(run, tmp_path / name)
    assert read_result(tmp_path / "a").files == read_result(tmp_path / "b").files
    assert read_result(tmp_path / "a").files["metrics.jsonl"] == files["metrics.jsonl"]


@pytest.mark.parametrize("name", ["model.safetensors", "masks.safetensors"])
def test_damaged_weights_that_were_deleted_are_written_again_from_the_checkpoint(done, name):
    whole, result = (done / name).read_bytes(), read_result(done)
    flip(done / name)
    with pytest.raises(InputError, match=rf"{name}' is damaged .*: restore it from a copy, or delete it and run again"):
        load_run(done)
    (done / name).unlink()
    again = loop.train(change(RUN, probe="every=8"), done, resume=True)
    assert (done / name).read_bytes() == whole
    assert dataclasses.replace(again, images_per_second=result.images_per_second) == result
    read_whole(done)


def test_a_finished_run_without_weights_and_checkpoint_is_not_trained_anew(stopped):
    result = loop.train(RUN, stopped, resume=True)
    for name in ("model.safetensors", "checkpoint.pt", "checkpoint.previous.pt"):
        (stopped / name).unlink()
    assert loop.train(RUN, stopped, resume=True) == result
    assert not (stopped / "model.safetensors").exists()


def test_a_curve_that_is_written_again_in_another_form_is_the_result_s(done):
    result = read_json(done / "result.json")
    write_json(done / "result.json", {**result, "files": {**result["files"], "metrics.jsonl": "of an older form"}})
    (done / "metrics.jsonl").unlink()
    loop.train(change(RUN, probe="every=8"), done, resume=True)
    assert read_json(done / "result.json") == result
    read_whole(done)


def test_what_was_written_by_others_is_named_and_no_traceback(done):
    run = change(RUN, probe="every=8")
    result = read_json(done / "result.json")
    for key in result.keys() - {"rounds", "data_set", "above_chance", "files"}:  # not read, or younger than results
        write_json(done / "result.json", {name: value for name, value in result.items() if name != key})
        with pytest.raises(InputError, match=rf"result\.json' is damaged \(it has no '{key}'"):
            loop.train(run, done, resume=True)
    write_json(done / "result.json", result)
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    lines[1] = with_checksum({"epoch": 2})
    (done / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"metrics\.jsonl' is damaged .line 2: it has no 'step'"):
        loop.train(run, done, resume=True)


def test_two_processes_do_not_train_one_run(stopped):
    before = {file.name: file.read_bytes() for file in stopped.iterdir()}
    with alone_in(stopped), pytest.raises(InputError, match="another process is at work"):
        loop.train(RUN, stopped, resume=True)
    assert {file.name: file.read_bytes() for file in stopped.iterdir()} == before
    assert loop.train(RUN, stopped, resume=True).epochs == 4


def test_a_run_keeps_others_out_while_it_trains(tmp_path):
    met = []

    def second():
        with pytest.raises(InputError, match="another process is at work"):
            loop.train(RUN, tmp_path / "run", resume=True)
        met.append(True)

    loop.train(RUN, tmp_path / "run", watcher=After(2, second))
    assert met == [True]


def test_equal_runs_leave_equal_files(tmp_path):
    for name in "ab":
        loop.train(RUN, tmp_path / name)
    for name in ("config.json", "model.safetensors", "masks.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.slow
def test_equal_runs_leave_equal_files_in_whatever_process(tmp_path):
    """All but what holds times: checkpoints, the result, the curve and the page."""
    code = """if True:
        import sys, torch
        from pathlib import Path
        from flatsparse.experiments.run.config import RunConfig
        from flatsparse.experiments.run.loop import train
        torch.set_num_threads(1)
        train(RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=2, sharpness="s2sam"), Path(sys.argv[1]))
    """
    running = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / seed], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in running] == [0, 0]
    for name in ("config.json", "model.safetensors", "masks.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    timed = {"seconds", "step_seconds", "records"}
    states = [load_checked(tmp_path / seed / "checkpoint.pt") for seed in ("1", "2")]
    for state in states:
        state["progress"] = {name: value for name, value in state["progress"].items() if name not in timed}
    kept = [tmp_path / f"{number}.pt" for number in (1, 2)]
    for file, state in zip(kept, states, strict=True):
        save_state(file, state)
    assert kept[0].read_bytes() == kept[1].read_bytes()


def test_a_run_that_diverges_at_its_last_step_has_no_result(tmp_path):
    """Nothing looks at the weights after it but the end itself, where no images are held out."""
    once = RunConfig.of(
        train_size=64, validation_size=0, batch_size=64, epochs=1, method="dense", lr=1e30, momentum=0.0
    )
    with pytest.raises(InputError, match=r"the loss became (nan|inf) in epoch 1: lower --lr 1e\+30"):
        loop.train(once, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_whose_weights_are_not_finite_is_not_read(done):
    tensors, about = load_tensors(done / "model.safetensors")
    tensors["0.weight"][0] = float("nan")
    save_tensors(done / "model.safetensors", tensors, about)
    with pytest.raises(InputError, match="weights that are not finite"):
        load_run(done)
