"""Runs, comparisons and recipes drawn at random, each twice: the second time in another process and in another way.

``python tests/stress/same_bits.py 200`` draws 200 cases and ends with status 1 if a case differs in a bit of what it writes, by
content; it prints what repeats each that does, and the counts. In another way: with other numbers of data workers and of jobs,
stopped and resumed, from another folder, after other code has drawn from all generators, with another PYTHONHASHSEED.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.stress.done_twice import Case, contents_of

CRASHED = "it ended by"
DATA = ("digits", "images", "noisy", "several", "sequences", "stream")


def drawn(seed: int) -> Case:
    """A case at random."""
    from flatsparse.experiments.run.sharpness import SHARPNESS
    from flatsparse.methods import METHODS

    source = random.Random(seed)
    kind = source.choices(("run", "compare", "script", "reproduce"), (12, 2, 2, 1))[0]
    if kind != "run":
        return Case(kind, {"seed": source.randrange(3), "method": source.choice(("rigl", "set", "gmp"))}, jobs=2)
    method = source.choice([name for name in METHODS if name not in ("lth", "lrr")] * 3 + ["lth", "lrr"])
    data = source.choice(DATA)
    if method in ("chex", "chase", "wanda") and data not in ("digits", "images"):
        data = "digits"
    options: dict[str, Any] = {
        "method": method,
        "sharpness": source.choice(list(SHARPNESS)),
        "sparsity": 0.0 if method in ("dense", "chex") else source.choice((0.5, 0.8, 0.9)),
        "epochs": 3,
        "batch_size": 16,
        "seed": source.randrange(5),
        "optimizer": source.choice(("sgd", "sgd", "adamw")),
        **({"drop_fraction": 0.5, "epochs": 2} if method in ("lth", "lrr") else {}),
        **({"accumulate": 2} if source.random() < 0.2 else {}),
        **({"probe": "every=3"} if source.random() < 0.1 else {}),
        **({"ema": 0.9} if source.random() < 0.2 and method not in ("lth", "lrr") else {}),
        **({"train_size": 64, "validation_size": 50} if data == "digits" else {}),
        **({"label_noise": 0.2} if data == "digits" and source.random() < 0.3 else {}),
        **({"image_size": 8, "model": "digitnet"} if data == "images" else {}),
    }
    stop = tuple(sorted(source.sample((1, 2), source.choice((0, 1, 1, 2)))))
    return Case("run", options, data, source.choice((0, 1, 2, 3)) if data != "digits" else 0, stop)


def serve() -> None:
    """Answer cases that come in lines, until there are no more."""
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints does so beside the answers
    for line in sys.stdin:
        asked = json.loads(line)
        case = Case(**{**asked["case"], "stop": tuple(asked["case"]["stop"])})
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = contents_of(case, Path(folder, "a" if asked["plain"] else "another"), plain=asked["plain"])
            except Exception:  # whatever it is, it is a fault
                found = {CRASHED: traceback.format_exc()}
        print(json.dumps(found), file=answers, flush=True)


def start(hash_seed: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--serve"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def answered(server: subprocess.Popen[str], case: Case, *, plain: bool) -> Any:
    """What a case comes to in a server's process."""
    print(json.dumps({"case": dataclasses.asdict(case), "plain": plain}), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline() or f'{{"{CRASHED}": "its process"}}')


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two contents differ."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours, theirs = ({str(place): value for place, value in enumerate(one)} for one in (ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            d for key in sorted({*ours, *theirs}) for d in differences(ours.get(key), theirs.get(key), f"{where}/{key}")
        ]
    return [] if ours == theirs else [f"{where}: {ours!r:.90} and {theirs!r:.90}"]


def main(count: int, first: int) -> int:
    """Run cases with consecutive seeds. Returns the exit status."""
    began, seen = time.perf_counter(), collections.Counter[str]()
    servers, bad = [start(1), start(2)], 0
    for seed in range(first, first + count):
        case = drawn(seed)
        found = [answered(server, case, plain=plain) for server, plain in zip(servers, (True, False), strict=True)]
        odd = [one[CRASHED] for one in found if isinstance(one, dict) and CRASHED in one] or differences(*found)
        if odd:
            print(f"{case}: {odd[:3]}\nrepeat it: python tests/stress/same_bits.py 1 --seed {seed}")
            bad += 1
            continue
        seen.update(_features(case, found[0]))
    for server in servers:
        server.stdin.close()
        server.wait()
    counts = ", ".join(f"{number} {what}" for what, number in sorted(seen.items()))
    print(f"{count - bad} of {count} cases were the same twice ({counts}); {time.perf_counter() - began:.0f} seconds")
    return int(bad > 0)


def _features(case: Case, found: Any) -> list[str]:
    if isinstance(found, str):
        return ["refused"]
    return [
        {
            "run": f"runs of {case.data}",
            "compare": "comparisons",
            "script": "comparisons of scripts",
            "reproduce": "recipes",
        }[case.kind],
        *(["with workers"] if case.workers else []),
        *(["resumed"] if case.stop else []),
        *(["resumed twice"] if len(case.stop) > 1 else []),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.exit(serve() if given.serve else main(given.count, given.seed))
