"""Functions run by several processes that talk through gloo."""

import multiprocessing
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

LIMIT = 120.0  # seconds until processes that wait for each other are given up


def together(function, *args, world=2):
    """What ``function(rank, *args)`` returns on each rank; an error on any rank is raised here."""
    fork = multiprocessing.get_context("fork")  # fresh interpreters would spend their lives on imports
    with tempfile.TemporaryDirectory() as folder:
        members = [fork.Process(target=_member, args=(folder, function, rank, world, args)) for rank in range(world)]
        for member in members:
            member.start()
        try:
            end = time.monotonic() + LIMIT
            while any(m.exitcode is None for m in members) and time.monotonic() < end and not _failed(folder, world):
                time.sleep(0.01)
            waiting = [rank for rank, member in enumerate(members) if member.exitcode is None]
        finally:
            for member in members:
                member.kill()
        answers = [torch.load(file) if (file := _answer(folder, rank)).is_file() else None for rank in range(world)]
    failed = [answer["error"] for answer in answers if answer and "error" in answer]
    assert not failed, "\n".join(failed)
    assert not waiting, f"ranks {waiting} wait for ever"
    return [answer["value"] for answer in answers]


def _answer(folder, rank):
    return Path(folder) / f"{rank}.pt"


def _failed(folder, world):
    """Whether a rank has failed; the others may then wait for it for ever."""
    return any("error" in torch.load(file) for rank in range(world) if (file := _answer(folder, rank)).is_file())


def _member(folder, function, rank, world, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        answer = {"value": function(rank, *args)}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    half = Path(folder) / f"{rank}.half"
    torch.save(answer, half)
    half.replace(_answer(folder, rank))
    if "value" in answer:  # after an error the others may be stuck in a collective
        dist.destroy_process_group()
