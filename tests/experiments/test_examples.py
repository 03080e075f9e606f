"""The scripts in examples/: what is not plain in them, and that S²-SAM and masks survive what others wrap around them."""

import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flatsparse.experiments.scripts.arm import Arm
from flatsparse.experiments.scripts.comparison import ScriptComparison, compare_script
from flatsparse.experiments.scripts.script import Script

EXAMPLES = Path(__file__).parents[2] / "examples"
MARK = "  # flatsparse"
MOST = 4  # lines that may differ
# The lines that differ, and what they are in the plain script; those that are empty there are not in it.
PLAIN = {
    "hf_trainer.py": {
        "def train(arm):": "def train():",
        "    arguments = TrainingArguments(arm.folder, seed=arm.seed, **settings)": (
            "    arguments = TrainingArguments('out', **settings)"
        ),
        "    optimizer = arm.optimizer(optimizer)": "",
        "    arm.sparsify(model, optimizer, steps=EPOCHS * len(data) // BATCH)": "",
    },
    "lightning_module.py": {
        "def train(arm):": "def train():",
        "    model.arm = arm": "",
        "        optimizer = self.arm.optimizer(optimizer)": "",
        "        self.arm.sparsify(self, optimizer, steps=self.trainer.estimated_stepping_batches)": "",
    },
}
NEEDS = {"hf_trainer.py": ("transformers", "accelerate"), "lightning_module.py": ("lightning",), "own_loop.py": ()}
# Whether SAM can be an arm, and whether less of the compared number is better.
KINDS = {"hf_trainer.py": (False, "lower"), "lightning_module.py": (True, "higher"), "own_loop.py": (True, "higher")}


def importable(name):
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"{name} is a script for {package}")


def shortened(text):
    """A script with two epochs."""
    short, count = re.subn(r"^EPOCHS, BATCH = \d+,", "EPOCHS, BATCH = 2,", text, flags=re.MULTILINE)
    assert count == 1
    return short


@pytest.mark.parametrize("name", PLAIN)
def test_at_most_four_lines_are_not_those_of_the_plain_script(name, tmp_path):
    importable(name)
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    marked = [line.removesuffix(MARK) for line in lines if line.endswith(MARK)]
    assert len(marked) <= MOST
    assert set(marked) == set(PLAIN[name])
    plain = "\n".join(PLAIN[name].get(line.removesuffix(MARK), line) for line in lines)
    assert "arm" not in re.sub(r"\A\"\"\".*?\"\"\"|warmup\w*", "", plain, flags=re.DOTALL)
    program = f"{plain}\nscores = train()\nassert all(isinstance(score, float) for score in scores.values()), scores\n"
    (tmp_path / name).write_text(shortened(program), encoding="utf-8")
    ran = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", KINDS)
def test_an_example_perturbs_and_keeps_its_masks(name, tmp_path, monkeypatch):
    importable(name)
    kept, sparsify = {}, Arm.sparsify

    def spy(arm, model, optimizer, **options):
        training, perturbed = sparsify(arm, model, optimizer, **options), []
        model.register_forward_pre_hook(  # behind the one that perturbs
            lambda module, args: (
                perturbed.append(getattr(optimizer, "is_perturbed", False)) if module.training else None
            )
        )
        kept[arm.name] = (model, optimizer, training, perturbed)
        return training

    monkeypatch.setattr(Arm, "sparsify", spy)
    has_closure, better = KINDS[name]
    comparison = ScriptComparison(sharpness=("sam", "s2sam", "random"), seeds=1, better=better, jobs=1, rho=0.1)
    console = Console(file=io.StringIO())
    (tmp_path / name).write_text(shortened((EXAMPLES / name).read_text(encoding="utf-8")), encoding="utf-8")
    table = compare_script(Script.named(f"{tmp_path / name}:train"), comparison, tmp_path / "out", console=console)
    arms = ["none", *(["sam"] if has_closure else []), "s2sam", "random"]
    assert [row.sharpness for row in table.rows] == arms
    if not has_closure:
        assert "SAM.step() has no second gradient: give it a closure" in table.failures[0]
        assert "line" in table.failures[0]
    for row in table.rows:
        model, optimizer, training, perturbed = kept[row.sharpness]
        steps = int(row.steps)
        assert row.gradients_per_step == (2 if row.sharpness == "sam" else 1)
        expected = {
            "none": [False] * steps,
            "sam": [False, True] * steps,
        }.get(row.sharpness, [False] + [True] * (steps - 1))
        assert perturbed == expected
        assert [w for w in row.warnings if "masks are updated every" not in w] == []
        assert training.sparsity == pytest.approx(0.9, abs=0.01)
        weights = dict(model.named_parameters())
        for layer, mask in training.masks.items():
            assert not mask.all()
            assert weights[layer].detach()[~mask].count_nonzero() == 0
        innermost = getattr(optimizer, "base", optimizer)
        states = [innermost.state[weights[layer]] for layer in training.masks]
        for state, mask in zip(states, training.masks.values(), strict=True):
            moments = [value for key, value in state.items() if key in ("momentum_buffer", "exp_avg", "exp_avg_sq")]
            assert moments
            assert all(moment[~mask].count_nonzero() == 0 for moment in moments)
    ends = [torch.cat([p.detach().flatten() for p in kept[name][0].parameters()]) for name in arms]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(ends, 2))  # no arm is another
