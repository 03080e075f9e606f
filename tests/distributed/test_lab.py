"""`flatsparse train` by several processes."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flatsparse.cli import entry
from flatsparse.common.errors import InputError
from flatsparse.common.masks_file import load_masks
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.data.splits import split
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.ddp import SINGLE, DistContext, WorkerLost, distributed
from flatsparse.experiments.run.watcher import Silent

from .processes import together

RUN = RunConfig.of(train_size=99, validation_size=50, batch_size=33, epochs=6, sparsity=0.8, sharpness="s2sam", rho=0.2)
COMMAND = ["train", "--train-size", "99", "--validation-size", "50", "--batch-size", "33", "--epochs", "4"]


def trained(rank, out, world=2, resume=False):
    loop.CHECKPOINT_SECONDS = 0.0
    return loop.train(RUN, out, resume=resume, context=DistContext(rank, world)).to_json()


class Stopped(Exception):
    pass


class AfterThree(Silent):
    def finished_epoch(self, record):
        if record.epoch == 3:
            raise Stopped


def trained_in_two_goes(rank, out, world=2):
    loop.CHECKPOINT_SECONDS = 0.0
    with pytest.raises(Stopped):
        loop.train(RUN, out, watcher=AfterThree(), context=DistContext(rank, world))
    return trained(rank, out, world, resume=True)


def end_alike(folder):
    for file, read in (("model.safetensors", load_tensors), ("masks.safetensors", load_masks)):
        ours, theirs = (read(folder / name / file)[0] for name in ("stopped", "whole"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.filterwarnings("ignore:.*Grad strides")
def test_two_processes_agree_and_go_on_where_they_stopped(tmp_path):
    first, second = together(trained, tmp_path / "whole")
    assert first == second
    together(trained_in_two_goes, tmp_path / "stopped")
    end_alike(tmp_path)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["processes"] == 2
    assert first["steps"] == 6 * 3
    assert first["flops"]["train"] == pytest.approx(loop.train(RUN, tmp_path / "one").flops.train)


@pytest.mark.filterwarnings("ignore:.*Grad strides")
def test_three_processes_go_on_where_they_stopped(tmp_path):
    """The sum of three depends on its order, and that on where DDP lays a gradient in its buckets."""
    together(trained, tmp_path / "whole", 3, world=3)
    together(trained_in_two_goes, tmp_path / "stopped", 3, world=3)
    end_alike(tmp_path)


def test_the_parts_of_a_batch_are_the_whole_batch():
    data = load("digits", None)
    splits = split(data, train_size=101, validation_size=50, label_noise=0.0, seed=0)
    for augment in (False, True):
        whole, *parts = (
            [b.content for b in splits.train.batches(30, augment=augment, seed=3, epoch=2, shard=context.shard)]
            for context in (SINGLE, DistContext(0, 3), DistContext(1, 3), DistContext(2, 3))
        )
        for index, (images, labels) in enumerate(whole):
            for rank, part in enumerate(parts):
                assert torch.equal(part[index][0], images[rank::3])
                assert torch.equal(part[index][1], labels[rank::3])


def test_a_batch_too_small_for_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="the smallest batch has 1 images for 2 processes"):
        loop.train(
            RunConfig.of(train_size=34, validation_size=50, batch_size=33), tmp_path / "run", context=DistContext(0, 2)
        )
    assert not (tmp_path / "run").exists()


def trained_in_parts(rank, out, run):
    return loop.train(run, out, context=DistContext(rank, 2)).to_json()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Grad strides")
def test_two_processes_compute_a_batch_in_parts_as_one_computes_it_whole(tmp_path):
    lines = "return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))"
    (tmp_path / "net.py").write_text(
        f"from torch import nn\n\n\ndef net(classes):\n    {lines}\n"
    )  # without batch norm
    run = change(RUN, model=f"{tmp_path / 'net.py'}:net", epochs=2)
    together(trained_in_parts, tmp_path / "parts", change(run, accumulate=3))
    loop.train(run, tmp_path / "whole")
    ours, theirs = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("parts", "whole"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "flatsparse", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def test_train_runs_under_torchrun_unchanged(tmp_path):
    done = torchrun(*COMMAND, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.slow
def test_what_cannot_be_run_is_said_once(tmp_path):
    done = torchrun("compare", "--out", str(tmp_path / "comparison"))
    assert done.returncode != 0
    assert done.stderr.count("flatsparse: error: compare starts its own processes") == 1


def started_until_a_checkpoint(out, *options):
    """``torchrun`` after the first epoch, and the process of each rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    started = subprocess.Popen(
        [*command, "-m", "flatsparse", *COMMAND, "--epochs", "40", "--out", str(out), "--resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (out / "checkpoint.pt").is_file() and started.poll() is None:
        time.sleep(0.01)
    ranks = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            about = dict(entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if "=" in entry)
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if "RANK" in about and parent == str(started.pid):
                ranks[int(about["RANK"])] = int(process.name)
    return started, ranks


def killed_once(out, *options):
    """``torchrun``, whose second process is killed after the first epoch: its status, and what is printed."""
    started, ranks = started_until_a_checkpoint(out, *options)
    os.kill(ranks[1], signal.SIGKILL)
    said, _ = started.communicate(timeout=240)
    return started.returncode, said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="only Linux tells which process has which rank")
def test_restarted_by_torchrun_a_run_ends_in_the_same_bits(tmp_path):
    status, said = killed_once(tmp_path / "stopped", "--max-restarts", "2")
    assert status == 0, said
    assert "; continuing after epoch" in said.replace("\n", " ")
    status, said = killed_once(tmp_path / "whole")
    assert status == 1
    assert len(re.findall(r"^flatsparse: error: rank 1 \(process \d+ on \S+\) has ended, last at", said, re.M)) == 1
    assert torchrun(*COMMAND, "--epochs", "40", "--out", str(tmp_path / "whole"), "--resume").returncode == 0
    end_alike(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="only Linux tells which process has which rank")
def test_processes_end_when_torchrun_is_killed(tmp_path):
    started, ranks = started_until_a_checkpoint(tmp_path / "run")
    assert sorted(ranks) == [0, 1]
    started.kill()
    said, _ = started.communicate(timeout=60)  # returns when the last of them has closed its output
    assert len(re.findall("^flatsparse: error: torchrun .* has ended", said, re.MULTILINE)) == 1
    assert not (tmp_path / "run" / "result.json").is_file()


def test_an_error_of_another_process_than_the_main_one_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(entry, "OTHERS_LATER", 0.0)
    for is_first, said in (
        (None, "flatsparse: error: rank 1: what is wrong\n"),
        (True, "flatsparse: error: what is wrong\n"),
        (False, ""),
    ):
        with pytest.raises(SystemExit) as end:
            entry._fail("what is wrong", is_first)
        assert end.value.code == 2
        assert capsys.readouterr().err == said


def of_another_checkpoint(rank, folder):
    loop.CHECKPOINT_SECONDS = 0.0
    with pytest.raises(InputError) as told:
        loop.train(RUN, folder / str(rank), resume=True, context=DistContext(rank, 2))
    return str(told.value)


@pytest.mark.filterwarnings("ignore:.*Grad strides")
def test_processes_that_start_from_different_checkpoints_are_refused(tmp_path):
    with pytest.raises(Stopped):
        loop.train(RUN, tmp_path / "0", watcher=AfterThree())
    for said in together(of_another_checkpoint, tmp_path):
        assert "processes [1] do not start where process 0 does, with the masks after epoch 3" in said


def left_alone(rank, port, told):
    """One of two processes of a run, of which the second answers once and never again."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "FLATSPARSE_TIMEOUT": "3"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "x"}
    try:
        with distributed("cpu") as context:
            context.broadcast("here")
            if rank == 1:
                signal.raise_signal(signal.SIGSTOP)
            context.sum(torch.ones(1))
    except InputError as problem:
        told.put((type(problem), str(problem)))


@pytest.mark.slow
def test_a_process_that_stopped_is_not_waited_for_without_end():
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = fork.Queue()
    members = [fork.Process(target=left_alone, args=(rank, port, told)) for rank in (0, 1)]
    for member in members:
        member.start()
    try:
        kind, message = told.get(timeout=60)
    finally:
        for member in members:
            member.kill()
    assert kind is WorkerLost
    assert "did not answer within 3 s (FLATSPARSE_TIMEOUT" in message
    assert "\n" not in message


@pytest.mark.parametrize("given", ["0", "-1", "nan", "soon", "inf"])
def test_a_time_that_is_none_is_refused(monkeypatch, given):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLATSPARSE_TIMEOUT", given)
    with pytest.raises(InputError, match="FLATSPARSE_TIMEOUT"), distributed("cpu"):
        raise AssertionError("joined")
