"""What Windows and macOS lack or refuse is not needed, as far as Linux can tell: see ``as_windows``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flatsparse

from . import as_windows

PACKAGE = Path(flatsparse.__file__).parent
QUICK = "--train-size 64 --validation-size 32 --batch-size 32 --epochs 2 --model digitnet"
TRAIN = f"train {QUICK} --method rigl --sparsity 0.5 --sharpness s2sam --out"
COMMANDS = [
    f"{TRAIN} runs/a",
    f"{TRAIN} runs/a --resume",
    f"train {QUICK} --method lth --sparsity 0.5 --parent parents",
    f"compare {QUICK} --seeds 1 --sharpness none s2sam --jobs 1 --device cpu --out compared",
    f"compare {QUICK} --seeds 1 --sharpness none s2sam --jobs 1 --device cpu --out compared --resume",
    "evaluate runs/a --images 20 --jobs 1 --device cpu --out evaluated",
    "export runs/a --images 20 --out exported",
    "landscape runs/a --points 3 --images 20 --pairs 1 --hessian-images 0 --jobs 1 --device cpu --out drawn",
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to know what is open")
def test_every_module_is_imported_and_every_command_runs(tmp_path):
    """In the plainest locale, whose texts are ASCII, so that an encoding left out is an error for ρ and S²-SAM."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "CC": "no-such-compiler"}
    call = [sys.executable, as_windows.__file__, *COMMANDS]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    modules = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in PACKAGE.rglob("*.py")
    }
    assert modules - {"flatsparse.__main__"} <= set(done.stdout.splitlines()) | {"flatsparse"}
    assert (tmp_path / "exported").is_dir()
    assert not list(tmp_path.rglob(".lock"))
    assert not [file for file in tmp_path.rglob("*") if as_windows.NAME.search(file.name)]


@pytest.mark.parametrize("name", ["a:b", "what?", "end.", "end ", "NUL", "con.txt", "lpt1", 'say "a"', "a|b", "tab\t"])
def test_names_that_windows_does_not_take_are_seen(name):
    with pytest.raises(OSError, match="Windows takes no such name"):
        as_windows.check_name(f"runs/{name}/file")
    as_windows.check_name("runs/.half/control.txt/../com")
