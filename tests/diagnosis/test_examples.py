"""The loops of the examples, a plain one and two trainers', are right: the doctor is silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatsparse.diagnosis.script import examine_script

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import flatsparse as fs
from {example} import train

class arm:
    seed, folder = 0, "files"
    optimizer = staticmethod(fs.S2SAM)
    def sparsify(model, optimizer, steps):
        return fs.sparsify(model, optimizer, "rigl", sparsity=0.8, steps=steps, every=10)

train(arm)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "needs"), [("own_loop", "sklearn"), ("hf_trainer", "transformers"), ("lightning_module", "lightning")]
)
def test_an_example_has_no_findings(example, needs, tmp_path, monkeypatch):
    pytest.importorskip(needs)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.py"
    file.write_text(SCRIPT.format(folder=str(EXAMPLES), example=example))
    seen = examine_script(file, 30)
    assert seen.problem == ""
    assert seen.findings == ()
