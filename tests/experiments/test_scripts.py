import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.compare import Comparison
from flatsparse.experiments.equivalence import equivalence
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.run.config import RunConfig, Setting
from flatsparse.experiments.scripts.arm import Arm
from flatsparse.experiments.scripts.comparison import ScriptComparison, compare_script
from flatsparse.experiments.scripts.cost import Cost
from flatsparse.experiments.scripts.job import ArmResult, checked_scores, read_result
from flatsparse.experiments.scripts.report import compare_and_report, sentences
from flatsparse.experiments.scripts.script import Function, Script, script_of
from flatsparse.experiments.scripts.table import ArmOutcomes, decimals, tabulate
from flatsparse.experiments.stats import holm
from tests.helpers import same

LOOP = """
import os
import shutil
import random
import numpy as np
import torch
from torch import nn

INPUTS = torch.randn(64, 6)
TARGETS = (INPUTS @ torch.randn(6, 1)).tanh()

def train(arm):
    print("arm", arm.name)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = arm.optimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    training = arm.sparsify(model, optimizer, steps=40)
    for indices in torch.randperm(64).repeat(5).split(8):
        def closure():
            optimizer.zero_grad()
            loss = (model(INPUTS[indices]) - TARGETS[indices]).square().mean()
            loss.backward()
            return loss
        optimizer.step(closure)
    error = (model.eval()(INPUTS) - TARGETS).square().mean()
    drawn = random.random() + np.random.random()
    return {"error": error.detach(), "sparsity": training.sparsity, "drawn": drawn, "data": INPUTS.sum()}
"""
THREE = ScriptComparison(rho=0.2, seeds=2, better="lower", jobs=1)


def quiet():
    return Console(file=io.StringIO(), width=200)


def script(folder, text=LOOP, function="train", name="loop.py"):
    file = folder / name
    file.write_text(text)
    return Script.named(f"{file}:{function}")


def run(found, out, comparison=THREE, **options):
    return compare_script(found, comparison, out, console=quiet(), **options)


def numbers(table):
    """The returned numbers and the costs that are no times."""
    counted = [(r.cost.steps, r.cost.gradient_evaluations) for row in table.rows for r in row.results]
    return [[r.scores for r in row.results] for row in table.rows], counted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison in this process, with its folder."""
    folder = tmp_path_factory.mktemp("scripts")
    comparison = dataclasses.replace(THREE, sharpness=("none", "sam", "s2sam", "random"))
    with io.StringIO() as told:
        table = compare_and_report(
            script(folder), comparison, folder / "out", resume=False, console=Console(file=told, width=200)
        )
        return table, folder / "out", told.getvalue(), comparison


def test_arms_differ_in_sharpness_alone(finished):
    table, out, _, _ = finished
    assert [row.sharpness for row in table.rows] == ["none", "sam", "s2sam", "random"]
    for seed in (0, 1):
        scores = [row.results[seed].scores for row in table.rows]
        assert len({score["drawn"] for score in scores}) == 1  # python's and numpy's numbers are those of the seed
        assert len({score["error"] for score in scores}) == 4
        assert [score["sparsity"] for score in scores] == pytest.approx([0.9] * 4, abs=0.01)
    everything = [result.scores for row in table.rows for result in row.results]
    assert len({score["data"] for score in everything}) == 1  # what the file draws itself is the same for all
    assert len({score["drawn"] for score in everything}) == 2
    assert (out / "runs" / "sam-seed1" / "output.txt").read_text().startswith("arm sam\n")


def test_cost_is_counted(finished):
    table, _, _, _ = finished
    assert {row.sharpness: row.gradients_per_step for row in table.rows} == {
        "none": 1,
        "sam": 2,
        "s2sam": 1,
        "random": 1,
    }
    assert {row.steps for row in table.rows} == {40}
    assert table.row("none").step_time == 1
    assert table.row("sam").step_time > 0
    assert all(row.seconds > 0 for row in table.rows)


@pytest.mark.parametrize("name", ["none-seed1", "s2sam-seed0"])
def test_a_result_of_another_arm_or_seed_is_named(finished, tmp_path, name):
    _, out, _, comparison = finished
    copy = shutil.copytree(out, tmp_path / "out")
    spoilt = copy / "runs" / "none-seed0" / "result.json"
    shutil.copy(copy / "runs" / name / "result.json", spoilt)
    arm, _, seed = name.partition("-seed")
    with pytest.raises(InputError, match=rf"'{spoilt}' is damaged \(it is that of {arm} with seed {seed}\)"):
        run(script(out.parent), copy, comparison, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {}},
        {"scores": {"error": "small"}},
        {"cost": {"seconds": 1.0}},
        {"cost": {"seconds": 1.0, "steps": [], "gradient_evaluations": 1, "step_median": None}},
        {"warnings": [1]},
        {"arm": "none"},
    ],
    ids=str,
)
def test_a_result_of_another_form_is_named(finished, tmp_path, changes):
    folder = finished[1] / "runs" / "none-seed0"
    write_json(tmp_path / "result.json", {**read_json(folder / "result.json"), **changes})
    with pytest.raises(InputError, match=r"\A[^\n]*result\.json' is damaged[^\n]*\Z"):
        read_result(tmp_path)


def test_the_numbers_are_those_of_a_paired_test_by_hand(finished):
    table, out, _, _ = finished
    saved = read_json(out / "compare.json")
    assert saved["metric"] == {"name": "error", "better": "lower"}
    arms = {arm["name"]: arm for arm in saved["arms"]}
    plain, ps = np.array(arms["none"]["values"]), []
    for name in ("sam", "s2sam", "random"):
        gaps = np.array(arms[name]["values"]) - plain
        reach = stats.t.ppf(0.975, 1) * gaps.std(ddof=1) / math.sqrt(2)
        d = arms[name]["difference"]
        assert d["mean"] == pytest.approx(gaps.mean())
        assert d["interval95"] == pytest.approx([gaps.mean() - reach, gaps.mean() + reach])
        assert d["p"] == pytest.approx(stats.ttest_rel(arms[name]["values"], plain).pvalue)
        ps.append(d["p"])
    assert [arms[name]["difference"]["p_holm"] for name in ("sam", "s2sam", "random")] == holm(ps)
    control = np.array(arms["s2sam"]["values"]) - np.array(arms["random"]["values"])
    assert saved["over_random"]["mean"] == pytest.approx(control.mean())
    assert saved["over_random"]["pairs"] == 2
    assert arms["sam"]["scores"][1]["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert table.over_random.mean == saved["over_random"]["mean"]


def test_the_report_is_there(finished):
    table, out, told, _ = finished
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "loop.py:train" in page
    assert "lower is better" in page
    assert "accuracy" not in page + told  # which is no number of this script
    assert "S²-SAM ρ=0.2" in told
    assert "Warning (plain, SAM, S²-SAM, random): masks are updated every 3 steps" in told
    assert table.metric == Metric("error", "lower", decimals=table.metric.decimals)


def test_two_processes_come_to_the_numbers_of_one(finished, tmp_path):
    table, _, _, comparison = finished
    twice = run(script(tmp_path), tmp_path / "out", dataclasses.replace(comparison, jobs=2))
    assert numbers(twice) == numbers(table)


def outcomes(name, values, rho=0.1, failures=None):
    results = {
        seed: ArmResult({"error": value}, Cost(1.0, 10, 10 * (1 + (name == "sam")), 0.1 * (1 + (name == "sam"))), ())
        for seed, value in values.items()
    }
    return ArmOutcomes(name, rho, results, failures or {})


def test_lower_is_better_turns_verdicts_and_leaves_differences():
    plain = outcomes("none", {0: 2.0, 1: 2.2, 2: 2.1})
    less = outcomes("s2sam", {0: 1.0, 1: 1.21, 2: 1.09})
    more = outcomes("random", {0: 3.0, 1: 3.22, 2: 3.09})
    table = tabulate("a.py:f", [plain, less, more], "lower")
    assert [table.row(name).verdict for name in ("none", "s2sam", "random")] == [None, "helps", "hurts"]
    assert table.row("s2sam").difference.mean == pytest.approx(-1)
    assert table.to_json()["over_random"]["verdict"] == "helps"
    assert "S²-SAM (ρ = 0.1) helps: -1.00, 95 % interval -1.02 to -0.98" in sentences(table)[0]
    other = tabulate("a.py:f", [plain, less, more], "higher")
    assert [other.row(name).verdict for name in ("s2sam", "random")] == ["hurts", "helps"]


def test_a_margin_of_ones_own_is_tested_for_every_arm_together():
    plain = outcomes("none", {0: 2.0, 1: 2.2, 2: 2.1})
    like, unlike = outcomes("s2sam", {0: 2.0, 1: 2.21, 2: 2.09}), outcomes("random", {0: 1.0, 1: 3.3, 2: 2.3})
    table = tabulate("a.py:f", [plain, like, unlike], "lower", margin=0.3)
    alone = [equivalence([-gap for gap in table.row(name).gaps], 0.3) for name in ("s2sam", "random")]
    found = [table.row(name).equivalence for name in ("s2sam", "random")]
    assert [one.p_gain for one in found] == holm([one.p_gain for one in alone])
    assert table.to_json()["arms"][1]["difference"]["equivalence"]["excluded"] == "difference"
    assert " No difference larger than 0.3, with 95 % confidence." in sentences(table)[0]
    assert " Neither a gain nor a loss of 0.3 is ruled out." in sentences(table)[1]
    without = tabulate("a.py:f", [plain, like, unlike], "lower")
    assert "equivalence" not in without.to_json()["arms"][1]["difference"]
    assert "confidence" not in sentences(without)[0]


def test_a_difference_far_below_the_spread_is_not_written_as_none():
    plain, less = outcomes("none", {0: 2.0, 1: 2.2, 2: 2.1}), outcomes("s2sam", {0: 1.9999, 1: 2.1998, 2: 2.09985})
    table = tabulate("a.py:f", [plain, less], "lower")
    assert ": -0.00015, 95 % interval" in sentences(table)[0]
    assert table.metric.decimals == 5


def test_seeds_that_failed_are_counted_and_leave_the_others_paired():
    plain = outcomes("none", {0: 2.0, 2: 2.1}, failures={1: "broke"})
    less = outcomes("s2sam", {0: 1.0, 1: 9.0, 2: 1.2})
    table = tabulate("a.py:f", [plain, less], "lower")
    row = table.row("s2sam")
    assert row.gaps == pytest.approx((-1.0, -0.9))
    assert row.unpaired == 1
    assert table.failures == ("plain, seed 1: broke",)
    assert "Without 1 seed that failed" in sentences(table)[0]


def test_other_names_are_not_compared():
    plain = outcomes("none", {0: 2.0, 1: 2.1})
    other = ArmOutcomes("s2sam", 0.1, {0: ArmResult({"loss": 1.0}, Cost(1.0, 1, 1, 1.0), ())}, {})
    with pytest.raises(InputError, match="its first number is 'loss', and that of plain training 'error'"):
        tabulate("a.py:f", [plain, other], "lower")


def test_unknown_costs_are_none():
    unknown = {0: ArmResult({"error": 1.0}, Cost(1.0, None, None, None), ())}
    table = tabulate("a.py:f", [ArmOutcomes("none", 0, unknown, {}), ArmOutcomes("s2sam", 1, unknown, {})], "lower")
    row = table.row("s2sam")
    assert (row.gradients_per_step, row.step_time, row.steps) == (None, None, None)
    assert "gradient" not in sentences(table)[0]


def test_decimals_show_two_digits_of_the_deviation():
    assert [decimals(v) for v in ([0.9512, 0.9561], [100.0, 300.0], [2e-9, 3e-9], [5.0], [1.0, 1.0])] == [
        4,
        0,
        11,
        2,
        2,
    ]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "the function returned NoneType: return a dict of floats"),
        ([0.9], "the function returned list"),
        ({}, "the function returned an empty dict"),
        ({"loss": math.nan}, "'loss': nan, which is no finite number"),
        ({"loss": "low"}, "'loss': 'low', which is no finite number"),
        ({"loss": torch.ones(2)}, "no finite number"),
        ({"good": True}, "no finite number"),
        ({3: 1.0}, "the function returned 3: 1.0, which is no finite number with a name"),
    ],
)
def test_what_is_no_dict_of_floats_is_refused(returned, reason):
    with pytest.raises(InputError, match="the function returned") as refused:
        checked_scores(returned)
    assert reason in str(refused.value)


def test_numbers_of_other_kinds_become_floats():
    assert checked_scores({"a": torch.tensor(0.5), "b": np.float32(2), "c": 3}) == {"a": 0.5, "b": 2.0, "c": 3.0}


PARTLY = """
import sys
def train(arm):
    if arm.name == "random":
        raise ValueError("no randomness here\\nat all")
    if arm.name == "momentum":
        return {"score": float("inf")}
    if arm.name == "average":
        sys.exit("enough")
    return {"score": arm.seed + (arm.name == "s2sam")}
"""


def test_an_arm_that_fails_leaves_its_reason_and_the_others_go_on(tmp_path):
    arms = dataclasses.replace(THREE, sharpness=("s2sam", "random", "momentum", "average"))
    table = run(script(tmp_path, PARTLY), tmp_path / "out", arms)
    assert [row.sharpness for row in table.rows] == ["none", "s2sam"]
    assert table.row("s2sam").gaps == (1.0, 1.0)
    reasons = {name: reason for name, _, reason in table.failed}
    assert reasons == {
        "random": "ValueError: no randomness here (line 5 of loop.py)",
        "momentum": "the function returned 'score': inf, which is no finite number with a name",
        "average": "SystemExit: enough (line 9 of loop.py)",
    }
    folder = tmp_path / "out" / "runs" / "random-seed1"
    assert read_json(folder / "failure.json")["reason"] == reasons["random"]
    assert "at all" in (folder / "traceback.txt").read_text()
    assert [f["seed"] for f in read_json(tmp_path / "out" / "compare.json")["failures"]] == [0, 1] * 3
    assert "random, seeds 0, 1: ValueError" in " ".join(table.failures)


def test_failures_are_repeated_when_asked(tmp_path):
    text = "import os\ndef train(arm):\n    if arm.name == 'random':\n        open('flag.txt').close()\n    return {'a': 1.0}\n"
    found = script(tmp_path, text.replace("flag.txt", str(tmp_path / "flag.txt")))
    assert len(run(found, tmp_path / "out").rows) == 2
    (tmp_path / "flag.txt").write_text("")
    assert len(run(found, tmp_path / "out", resume=True).rows) == 2
    assert len(run(found, tmp_path / "out", dataclasses.replace(THREE, retry=True), resume=True).rows) == 3


def test_nothing_can_be_compared_without_plain_training(tmp_path):
    found = script(tmp_path, "def train(arm):\n    assert arm.name != 'none', 'not so'\n    return {'a': 1.0}\n")
    with pytest.raises(
        InputError, match=r"nothing can be compared, as plain training has not finished \(plain, seed 0: Ass"
    ):
        run(found, tmp_path / "out")
    found = script(
        tmp_path, "def train(arm):\n    assert arm.name == 'none', 'not so'\n    return {'a': 1.0}\n", name="b.py"
    )
    with pytest.raises(
        InputError, match=r"no arm has finished with a seed of plain training \(S²-SAM, seed 0: Assertion"
    ):
        run(found, tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "function", "reason"),
    [
        ("def train(arm):\n    return 1\n", "fit", r"has no function 'fit' \(it has: train\)"),
        ("def train(arm:\n", "train", "does not run: SyntaxError"),
        ("import not_there_at_all\n", "train", "does not run: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)\n", "train", "does not run: SystemExit: 3"),
    ],
)
def test_a_file_that_no_arm_can_run_ends_the_comparison(tmp_path, text, function, reason):
    jobs = 2 if function == "fit" else 1
    with pytest.raises(InputError, match=reason):
        run(script(tmp_path, text, function), tmp_path / "out", dataclasses.replace(THREE, jobs=jobs))
    assert list((tmp_path / "out").rglob("failure.json")) == []


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("loop.py", "is no function of a file: give FILE.py:FUNCTION"),
        ("loop:train", "is no function of a file"),
        ("loop.py:", "is no function of a file"),
        ("absent.py:train", "no file 'absent.py'"),
    ],
)
def test_a_script_is_a_function_of_a_file(named, reason):
    with pytest.raises(InputError, match=reason):
        Script.named(named)


def test_a_changed_script_is_refused_and_the_same_one_elsewhere_is_not(tmp_path):
    text = "def train(arm):\n    return {'a': float(arm.seed)}\n"
    first = run(script(tmp_path, text), tmp_path / "out")
    (tmp_path / "moved").mkdir()
    again = run(script(tmp_path / "moved", text), tmp_path / "out", resume=True)
    assert numbers(again) == numbers(first)
    with pytest.raises(InputError, match="already holds such work"):
        run(script(tmp_path, text), tmp_path / "out")
    with pytest.raises(InputError, match=r"compares loop.py:train as it was before a change: give another --out"):
        run(script(tmp_path, text + "# changed\n"), tmp_path / "out", resume=True)
    with pytest.raises(InputError, match="holds work with --seeds 2, not 3"):
        run(script(tmp_path, text), tmp_path / "out", dataclasses.replace(THREE, seeds=3), resume=True)


def test_a_script_that_changes_meanwhile_ends_the_comparison(tmp_path):
    text = f"def train(arm):\n    open({str(tmp_path / 'loop.py')!r}, 'a').write('# more')\n    return {{'a': 1.0}}\n"
    with pytest.raises(InputError, match="has changed since the comparison began"):
        run(script(tmp_path, text), tmp_path / "out")


SLOW = """
import time
from pathlib import Path
def train(arm):
    Path(arm.folder, "began").write_text(str(time.time()))
    time.sleep(0.2)
    return {"a": float(arm.seed) + (arm.name == "s2sam")}
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there are no such kills here")
def test_a_comparison_killed_in_the_middle_goes_on_where_it_was(tmp_path):
    found, out = script(tmp_path, SLOW), tmp_path / "out"
    command = [sys.executable, "-m", "flatsparse", "compare", f"{found.file}:train", "--seeds", "4", "--out", str(out)]
    command += ["--sharpness", "s2sam", "random", "--jobs", "2", "--better", "lower"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    while len(list(out.rglob("result.json"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file: file.read_bytes() for file in out.rglob("result.json")}
    assert 3 <= len(before) < 12
    time.sleep(1.5)  # its workers notice
    comparison = ScriptComparison(seeds=4, better="lower", jobs=1)
    table = run(found, out, comparison, resume=True)
    assert {file: file.read_bytes() for file in before} == before
    assert table.row("s2sam").values == (1.0, 2.0, 3.0, 4.0)
    assert table.failures == ()


DIES = """
import os, signal
def train(arm):
    if arm.name == "random":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"a": 1.0}
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there are no such kills here")
def test_an_arm_whose_process_dies_is_a_failure(tmp_path):
    table = run(script(tmp_path, DIES), tmp_path / "out", dataclasses.replace(THREE, seeds=1, jobs=2))
    assert [row.sharpness for row in table.rows] == ["none", "s2sam"]
    assert "its process was killed" in table.failures[0]


READERS = """
import helper_of_this_folder
import torch
from torch.utils.data import DataLoader

def train(arm):
    data = DataLoader(torch.arange(8.0), batch_size=2, num_workers=1)
    return {"sum": float(sum(batch.sum() for batch in data)) + helper_of_this_folder.ONE, "threads": torch.get_num_threads()}
"""


@pytest.mark.slow
def test_an_arm_may_have_processes_of_its_own_and_import_what_lies_beside_it(tmp_path):
    (tmp_path / "helper_of_this_folder.py").write_text("ONE = 1\n")
    comparison = dataclasses.replace(THREE, seeds=1, jobs=2, threads=2, sharpness=("s2sam",))
    table = run(script(tmp_path, READERS), tmp_path / "out", comparison)
    assert table.row("none").results[0].scores == {"sum": 29.0, "threads": 2.0}


DRAWS = """
import torch
import drawing_helper, drawing_package.part, drawing_namespace.part
DRAWN = torch.randn(1)
def train(arm):
    drawing_helper.calls.append(arm.name)
    return {"drawn": float(DRAWN), "calls": len(drawing_helper.calls) + len(drawing_package.part.calls)}
"""


def test_no_arm_sees_what_another_left_in_a_module_beside_the_script(tmp_path):
    text = "import torch\ntorch.randn(3)\ncalls = []\n"
    (tmp_path / "drawing_helper.py").write_text(text)
    (tmp_path / "drawing_package").mkdir()
    (tmp_path / "drawing_package" / "__init__.py").write_text("")
    (tmp_path / "drawing_namespace").mkdir()
    (tmp_path / "drawing_namespace" / "part.py").write_text(text)
    (tmp_path / "drawing_package" / "part.py").write_text("from drawing_helper import calls\n" + text.splitlines()[0])
    table = run(script(tmp_path, DRAWS), tmp_path / "out")
    everything = [result.scores for row in table.rows for result in row.results]
    assert len(everything) == 6
    assert all(scores == {"drawn": everything[0]["drawn"], "calls": 2.0} for scores in everything)
    assert not [name for name in sys.modules if name.startswith("drawing_")]


MODES = """
import torch
DATA = torch.zeros(1)
def train(arm):
    found = {"bytes": DATA.element_size(), "gradients": float(torch.is_grad_enabled())}
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return found
"""


def test_no_arm_meets_the_modes_of_torch_that_another_left(tmp_path):
    table = run(script(tmp_path, MODES), tmp_path / "out")
    assert [result.scores for row in table.rows for result in row.results] == [{"bytes": 4.0, "gradients": 1.0}] * 6


LOGS = """
import logging, sys
if "handler" not in vars(logging):
    logging.handler = logging.StreamHandler()
    logging.getLogger("of_a_script").addHandler(logging.handler)
def train(arm):
    logging.getLogger("of_a_script").warning("by %s", arm.name)
    return {"a": 1.0}
"""


def test_loggers_write_to_the_file_of_the_arm_that_runs(tmp_path):
    try:
        run(script(tmp_path, LOGS), tmp_path / "out", dataclasses.replace(THREE, seeds=1))
    finally:
        import logging

        logging.getLogger("of_a_script").removeHandler(logging.__dict__.pop("handler"))
    for name in ("none", "s2sam", "random"):
        assert (tmp_path / "out" / "runs" / f"{name}-seed0" / "output.txt").read_text() == f"by {name}\n"


UNPERTURBED = """
import torch
def train(arm):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = arm.optimizer(torch.optim.SGD([weight], lr=0.1))
    for _ in range(3):  # neither a followed model nor a closure
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    return {"a": float(weight.sum())}
"""


def test_an_arm_that_is_silently_plain_is_said_to_be(tmp_path):
    table = run(script(tmp_path, UNPERTURBED), tmp_path / "out", dataclasses.replace(THREE, seeds=1))
    assert table.row("none").warnings == []
    assert "so this is plain SGD" in table.row("s2sam").warnings[0]
    assert any("Warning (S²-SAM, random): S2SAM: two steps without" in text for text in sentences(table))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("optimizer = base", "arm.optimizer was not called, so this is plain training unless"),
        ("optimizer = base; arm.optimizer(base)", "the optimizer that arm.optimizer returned took no step"),
    ],
)
def test_an_arm_whose_optimizer_is_not_used_is_said_to_be_plain(tmp_path, line, said):
    text = UNPERTURBED.replace("optimizer = arm.optimizer(", "base = (").replace("    for", f"    {line}\n    for")
    table = run(script(tmp_path, text), tmp_path / "out", dataclasses.replace(THREE, seeds=1))
    assert table.row("none").warnings == []
    for name in ("s2sam", "random"):
        assert len(table.row(name).warnings) == 1
        assert said in table.row(name).warnings[0]


# -- the arm ------------------------------------------------------------------------------------------------------


def arm_of(tmp_path, **settings):
    return Arm(RunConfig.of(**settings), tmp_path)


def test_an_arm_says_what_it_is(tmp_path):
    arm = arm_of(tmp_path, sharpness="s2sam", rho=0.3, seed=4, method="set", sparsity=0.8, device="cpu")
    assert (arm.name, arm.rho, arm.seed, arm.method, arm.sparsity, arm.device) == ("s2sam", 0.3, 4, "set", 0.8, "cpu")
    assert arm_of(tmp_path, rho=0.3).rho == 0.0
    assert arm.folder == tmp_path


@pytest.mark.parametrize("name", ["none", "sam", "s2sam", "random", "looksam", "stale", "momentum"])
def test_an_arm_gives_its_optimizer(tmp_path, name):
    base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
    optimizer = arm_of(tmp_path, sharpness=name, rho=0.3, seed=4, adaptive=True).optimizer(base)
    if name == "none":
        assert optimizer is base
        return
    assert optimizer.base is base
    assert optimizer.adaptive
    assert {group["rho"] for group in optimizer.param_groups} == {0.3}
    kind = {"sam": "SAM", "looksam": "LookSAM", "stale": "StaleSAM"}.get(name, "S2SAM")
    assert type(optimizer).__name__ == kind
    if kind == "S2SAM":
        assert (optimizer.direction, optimizer.seed) == ("previous" if name == "s2sam" else name, 4)


def test_options_of_the_wrapper_pass_through(tmp_path):
    base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
    optimizer = arm_of(tmp_path, sharpness="s2sam").optimizer(base, rho=0.7, in_place=True)
    assert optimizer.in_place
    assert optimizer.param_groups[0]["rho"] == 0.7
    with pytest.raises(InputError, match="base is SGD: give an instance"):
        arm_of(tmp_path).optimizer(torch.optim.SGD)


def sparse(arm, *method, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = arm.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    return arm.sparsify(model, optimizer, *method, **options)


def test_an_arm_makes_sparse_as_the_library_does(tmp_path):
    training = sparse(arm_of(tmp_path, seed=3, sparsity=0.7, every=5), steps=100)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    direct = fs.sparsify(model, optimizer, "rigl", sparsity=0.7, steps=100, seed=3, every=5)
    assert same(training.masks, direct.masks)
    assert training.due(5)


def test_options_of_the_method_pass_through(tmp_path):
    arm = arm_of(tmp_path, sparsity=0.7, distribution="uniform", exclude=("2",))
    assert sparse(arm, steps=100).masks.keys() == {"0.weight"}
    other = sparse(arm_of(tmp_path, sparsity=0.7), sparsity=0.5, every=7, include=["0"], steps=100)
    assert other.sparsity == pytest.approx(0.5, abs=0.01)
    assert [step for step in range(1, 30) if other.due(step)] == [7, 14, 21, 28]
    assert sparse(arm_of(tmp_path, sparsity=0.7), "static", steps=100).method == "static"
    assert sparse(arm_of(tmp_path), fs.methods.SET(every=9), sparsity=0.6, steps=100).method == "set"
    masks = {"0.weight": torch.rand(32, 32) > 0.5}
    assert same(sparse(arm_of(tmp_path), "static", masks=masks, steps=10).masks, masks)
    with pytest.raises(InputError, match="batches"):
        sparse(arm_of(tmp_path, method="snip"), steps=100)


def test_a_period_is_shortened_as_the_command_line_does_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="masks are updated every 6 steps, not 100, so that 80 steps have ten updates"):
        training = sparse(arm_of(tmp_path), steps=80)
    assert training.due(6)


def test_gradients_are_counted_with_accumulation_and_frozen_parameters(tmp_path):
    arm = arm_of(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    unused = torch.nn.Parameter(torch.ones(1))
    model[0].weight.requires_grad_(False)
    optimizer = arm.optimizer(torch.optim.SGD([unused, *model.parameters()], lr=0.1))
    for _ in range(3):
        for _ in range(2):
            model(torch.ones(2, 4)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    (meter,) = arm.meters.values()
    assert (meter.steps, meter.gradients, len(meter.times)) == (3, 6, 2)
    assert unused._post_accumulate_grad_hooks == {}


# -- the comparison -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"epochs": 3}, "--epochs is of no use with a script"),
        ({"data": "cifar10"}, "--data is of no use with a script: a script has its own"),
        ({"model": "resnet20"}, "--model is of no use"),
        ({"rho_schedule": "cosine"}, "--rho-schedule is of no use with a script: a script's steps are not known"),
    ],
)
def test_flags_of_no_use_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        ScriptComparison.of(Comparison(Setting.of(**options)), "higher", 1)


def test_flags_of_use_are_taken():
    setting = Setting.of(method="set", sparsity=0.5, adaptive=True, rho_schedule="inverse-sqrt", device="cpu")
    comparison = Comparison(setting, sharpness=("sam",), rho=0.1, rhos={"sam": 0.2}, seeds=3, jobs=2, retry=True)
    found = ScriptComparison.of(comparison, "lower", 4).resolved()
    assert found.as_dict()["method"] == "set"
    assert (found.sharpness, found.rhos, found.seeds, found.better) == (("none", "sam"), {"sam": 0.2}, 3, "lower")
    assert (found.threads, found.jobs, found.retry, found.device) == (4, 2, True, "cpu")
    run = found.config("sam", 2)
    assert (run.rho, run.seed, run.perturbation.adaptive, run.pruning.sparsity) == (0.2, 2, True, 0.5)


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [
        ({"tune": True}, "--tune is of no use with a script: a script says nothing of validation"),
        ({"label_noise": (0.2,)}, "--label-noise is of no use with a script"),
    ],
)
def test_what_needs_the_built_in_data_is_refused(comparison, reason):
    with pytest.raises(InputError, match=reason):
        ScriptComparison.of(Comparison(**comparison), "higher", 1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"seeds": 0}, "--seeds 0 is not usable"),
        ({"threads": 0}, "--threads 0 is not usable"),
        ({"jobs": 0}, "--jobs 0 is not usable"),
        ({"rho": -1.0}, "--rho -1"),
        ({"better": "best"}, "--better best is neither: give higher or lower"),
        ({"sharpness": ("none",)}, "--sharpness names nothing to compare"),
        ({"rhos": {"sam": 0.1}}, "--rhos sam is of no use"),
        ({"sharpness": ("s2sam", "radnom")}, "unknown sharpness 'radnom'"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        ScriptComparison(**settings).resolved()


# -- from Python ------------------------------------------------------------------------------------------------------


def of_seeds(arm):
    return {"a": float(arm.seed) + 0.5 * (arm.name == "s2sam")}


@torch.no_grad()
def decorated(arm):
    return of_seeds(arm)


def test_compare_takes_a_function_of_a_file(tmp_path, capsys):
    for function in (of_seeds, decorated):
        assert script_of(function, in_process=False) == Script.named(f"{__file__}:{function.__name__}")
    found = script(tmp_path, "def train(arm):\n    return {'a': 2.0 * arm.seed}\n")
    with found.loaded() as train:
        assert script_of(train, in_process=False) == found
    table = fs.compare(train, seeds=2, jobs=2, out=tmp_path / "out")
    assert table.row("random").values == (0.0, 2.0)
    assert (tmp_path / "out" / "report.html").is_file()
    assert "a, mean ± deviation over 2 seeds" in capsys.readouterr().out
    again = fs.compare(f"{found.file}:train", seeds=2, out=tmp_path / "out", resume=True)
    assert again.row("random").gaps == table.row("random").gaps
    with pytest.raises(InputError, match=r"unknown row 'sam' \("):
        table.row("sam")


def test_compare_takes_any_function_in_this_process(tmp_path):
    called = []

    def train(arm):
        called.append((arm.name, arm.seed, arm.sparsity, arm.rho))
        return {"a": 1.0}

    table = fs.compare(
        train, seeds=2, sharpness=["s2sam"], rho=0.1, rhos={"s2sam": 0.4}, sparsity=0.6, jobs=1, out=tmp_path / "out"
    )
    assert called == [("none", 0, 0.6, 0.0), ("s2sam", 0, 0.6, 0.4), ("none", 1, 0.6, 0.0), ("s2sam", 1, 0.6, 0.4)]
    assert table.row("s2sam").verdict == "within noise"
    with pytest.raises(InputError, match="no function at the top of a file, so other processes cannot find it"):
        fs.compare(train, jobs=2, out=tmp_path / "other")
    with pytest.raises(InputError, match="train is dict"):
        fs.compare({}, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_function_in_no_file_runs_in_this_process_alone(tmp_path):
    with pytest.raises(InputError, match="is in no file, so it runs in this process alone"):
        run(Function(of_seeds, "0"), tmp_path / "out", dataclasses.replace(THREE, jobs=2))


PROGRAM = """
import flatsparse as fs

def train(arm):
    return {"a": float(arm.seed)}

GUARD
    print(fs.compare(train, seeds=2, jobs=JOBS, out="out").row("s2sam").values)
"""


@pytest.mark.parametrize(
    ("guard", "jobs"),
    [('if __name__ == "__main__":', 2), ("if True:", 1), pytest.param("if True:", 2, marks=pytest.mark.slow)],
)
def test_a_program_compares_its_own_function_where_that_is_guarded(tmp_path, guard, jobs):
    (tmp_path / "program.py").write_text(PROGRAM.replace("GUARD", guard).replace("JOBS", str(jobs)))
    ran = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if "name" in guard:
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.endswith("(0.0, 1.0)\n")
    else:
        last = ran.stderr.strip().splitlines()[-1]
        assert last.startswith("flatsparse.common.errors.InputError: ")
        assert "program.py' starts a comparison when it is imported, and every arm imports it: put that call" in last
        assert ran.returncode == 1


def test_compare_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatsparse.experiments.scripts.comparison", None)
    with pytest.raises(InputError, match=r"pip install 'flatsparse\[lab\]'"):
        fs.compare(of_seeds, out=tmp_path)


@pytest.mark.slow
def test_a_cluster_comes_to_the_numbers_of_one_process(finished, tmp_path):
    pytest.importorskip("ray")
    table, _, _, comparison = finished
    there = dataclasses.replace(comparison, cluster="local", jobs=2)
    assert numbers(run(script(tmp_path), tmp_path / "out", there)) == numbers(table)
    with pytest.raises(InputError, match="has no function 'fit'"):
        run(script(tmp_path, function="fit"), tmp_path / "other", there)


def test_the_command_line_compares_a_script(tmp_path):
    from flatsparse.cli import main

    found = script(tmp_path, PARTLY)
    arguments = ["compare", f"{found.file}:train", "--seeds", "2", "--sharpness", "s2sam", "random", "--jobs", "1"]
    main([*arguments, "--out", str(tmp_path / "out")])
    saved = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [arm["name"] for arm in saved["arms"]] == ["none", "s2sam"]
    assert {failure["name"] for failure in saved["failures"]} == {"random"}
    assert Path(saved["script"]["file"]) == found.file
