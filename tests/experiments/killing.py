"""Runs that are killed at random moments must end as if nothing had happened. ``python killing.py 200`` kills so often."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from flatsparse.common.json_files import read_json
from flatsparse.common.masks_file import load_masks
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.methods import METHODS

KINDS = [(method, sharpness) for method in METHODS for sharpness in SHARPNESS]


def settings(method, sharpness):
    sparsity = 0.0 if method in {"dense", "chex"} else 0.9
    rounds = {"epochs": 2, "drop_fraction": 0.5} if method in ("lth", "lrr") else {"epochs": 8}
    return RunConfig.of(
        method=method,
        sharpness=sharpness,
        sparsity=sparsity,
        train_size=96,
        validation_size=50,
        batch_size=16,
        **rounds,
    )


def child(run, out):
    torch.set_num_threads(1)
    loop.CHECKPOINT_SECONDS = 0.0
    loop.train(run, out, resume=True)


def kill_until_done(run, out, whole_seconds, source, most):
    """Start the run again and again, killing it at random moments; how many kills it took."""
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would spend its life on imports
    kills = 0
    while True:
        process = fork.Process(target=child, args=(run, out))
        process.start()
        if kills == 0 < most:  # the first comes for certain, after the first epoch
            while process.is_alive() and not (out / "checkpoint.pt").is_file():
                time.sleep(0.001)
        else:
            process.join(source.uniform(0, whole_seconds) if kills < most else None)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        elif process.exitcode != 0:
            raise AssertionError(f"{run.pruning.method} with {run.sharpness} failed after {kills} kills")
        else:
            return kills


def check(kind, folder, source, most):
    """Kill one kind of run; its weights and curve must be those of an undisturbed run. Returns the number of kills."""
    run = settings(*kind)
    began = time.monotonic()
    kill_until_done(run, folder / "whole", 1.0, source, most=0)
    lasted = time.monotonic() - began
    kills = kill_until_done(run, folder / "killed", lasted, source, most)
    for file, load in (("model.safetensors", load_tensors), ("masks.safetensors", load_masks)):
        ours, theirs = (load(folder / name / file)[0] for name in ("killed", "whole"))
        odd = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
        assert not odd, f"{kind} after {kills} kills: {file} differs in {odd}"
    epochs = [len((folder / name / "metrics.jsonl").read_text().splitlines()) for name in ("killed", "whole")]
    asked = read_json(folder / "whole" / "result.json")["epochs"]
    assert epochs == [asked, asked], f"{kind}: {epochs} lines in the curves"
    left = [file.name for file in (folder / "killed").glob(".*")]
    assert not left, f"{kind} left {left}"
    return kills


def main(wanted):
    source, kills, runs = random.Random(0), 0, 0
    kinds = source.sample(KINDS, len(KINDS))  # so that a stop half-way has seen some of every sort
    while kills < wanted:
        folder = Path(tempfile.mkdtemp())
        kills += check(kinds[runs % len(kinds)], folder, source, most=min(8, wanted - kills))
        shutil.rmtree(folder)
        runs += 1
        print(f"{kills} kills in {runs} runs, all as if undisturbed", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
