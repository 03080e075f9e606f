"""What the measurements compute; no assertion here is about how long anything takes."""

import html
import importlib.util
import json
import statistics
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.cli import main
from flatsparse.common.json_files import read_json
from flatsparse.common.seeds import generator
from flatsparse.experiments.bench import results
from flatsparse.experiments.bench.cases import CASES, QUICK_CASES, Case, images, loss
from flatsparse.experiments.bench.memory import LiveBytes, memory
from flatsparse.experiments.bench.results import against_target, memory_table, throughput_table, timed
from flatsparse.experiments.bench.timing import WARM_UP, implied_ratio, interleaved, wall_ratio
from flatsparse.experiments.bench.trainer import Timing, Trainer
from flatsparse.experiments.bench.variants import VARIANTS, Variant, variants_for
from flatsparse.experiments.stats import Interval
from flatsparse.methods import METHODS
from flatsparse.sam import kernel
from tests.cli.test_cli import fails

SQUARE = 48  # layers this wide, without biases: all state can be counted by hand
COUNTABLE = Case(
    "ten square layers",
    lambda: nn.Sequential(nn.Flatten(), *[nn.Linear(SQUARE, SQUARE, bias=False) for _ in range(10)]),
    images(2, 4, SQUARE),
    targets={"s2sam": 1.0},
)
SIZE = 10 * SQUARE * SQUARE * 4  # bytes of its parameters
TINY = QUICK_CASES["resnet32"]


# -- time -------------------------------------------------------------------------------------------------------------


def test_ratios_are_medians_over_rounds():
    base = [Timing(2.0, 0.5), Timing(4.0, 0.5), Timing(2.0, 0.5)]
    ours = [Timing(2.2, 0.7), Timing(4.0, 0.9), Timing(3.0, 0.5)]
    assert wall_ratio(ours, base).mean == pytest.approx(1.1)
    assert implied_ratio(ours, base).mean == pytest.approx(1.1)
    assert implied_ratio(base, base) == Interval(1.0, 1.0, 1.0, len(base))
    assert implied_ratio([Timing(4.0, None)] * 3, base) is None


class Noted:
    """A trainer that only notes what it is given."""

    device = "cpu"

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def step(self, batch):
        self.notes.append((self.name, batch[0]))
        return Timing(float(len(self.notes)), None)


def test_every_round_steps_each_variant_once_on_the_same_batch_in_an_order_of_its_own():
    notes = []
    found = interleaved({name: Noted(name, notes) for name in "abcd"}, TINY, 20)
    rounds = [notes[i : i + 4] for i in range(0, len(notes), 4)]
    assert len(rounds) == 20 + WARM_UP
    assert all(sorted(name for name, _ in r) == list("abcd") for r in rounds)
    assert all(torch.equal(inputs, r[0][1]) for r in rounds for _, inputs in r)
    assert not torch.equal(rounds[0][0][1], rounds[1][0][1])
    assert len({tuple(name for name, _ in r) for r in rounds}) > 5
    kept = sorted(timing.step for timings in found.values() for timing in timings)
    assert kept == [float(n) for n in range(4 * WARM_UP + 1, len(notes) + 1)]


class Slow(nn.Linear):
    def forward(self, x):
        CLOCK[0] += 10
        return super().forward(x)


class Busy:
    """An optimizer that takes one second when the model is called and two in its step."""

    def __init__(self, base, model):
        self.base = base
        model.register_forward_pre_hook(lambda *_: self.wait(1))

    def wait(self, seconds):
        CLOCK[0] += seconds

    def step(self):
        self.wait(2)
        self.base.step()

    def zero_grad(self):
        self.base.zero_grad()


CLOCK = [0.0]


def test_an_optimizers_time_is_its_step_and_its_hooks_and_nothing_else(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: CLOCK[0])
    case = Case("slow", lambda: nn.Sequential(nn.Flatten(), Slow(48, 5)), images(2, 4, 5))
    assert time.perf_counter() == CLOCK[0]
    for variant, step, optimizer in (
        (Variant("busy", Busy), 13.0, 3.0),
        (VARIANTS["sgd"], 10.0, 0.0),
        (VARIANTS["sam"], 20.0, None),
    ):
        timing = Trainer(case, variant).step(case.batch(generator(0)))
        assert timing.step == pytest.approx(step, abs=1e-6)
        assert timing.optimizer == (None if optimizer is None else pytest.approx(optimizer, abs=1e-6))


def test_three_buffers_take_the_steps_of_s2sam():
    ours, theirs = (Trainer(TINY, VARIANTS[name]) for name in ("s2sam", "released"))
    plain = Trainer(TINY, VARIANTS["sgd"])
    source = generator(0)
    for _ in range(5):
        batch = TINY.batch(source)
        for each in (ours, theirs, plain):
            each.step(batch)

    def apart(a, b):
        gaps = [x - y for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True)]
        return torch.cat([gap.flatten() for gap in gaps]).norm().item()

    assert apart(ours, theirs) < 1e-3 * apart(ours, plain)


def test_trainers_start_with_equal_weights_and_masks():
    a, b = (Trainer(TINY, VARIANTS[name], sparsity=0.9) for name in ("sgd", "s2sam compact"))
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    weights = a.model[0].weight
    assert 0 < weights.count_nonzero() < weights.numel()


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_cases_batch_fits_its_network(case):
    torch.manual_seed(0)
    inputs, targets = case.batch(generator(0))
    with torch.no_grad():
        assert loss(case.model()(inputs[:2]), targets[:2]).isfinite()


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((1.0, 1.01), "met"), ((0.99, 1.005), "met"), ((1.005, 1.02), "open"), ((1.02, 1.03), "missed")],
)
def test_a_target_is_met_or_missed_only_by_the_whole_interval(interval, verdict):
    assert verdict in against_target("ours", Interval(1.0, *interval, 20), 1.01)
    assert "target" not in against_target("ours", Interval(1.0, *interval, 20), None)


def test_variants_are_those_that_differ_and_can_be_made(monkeypatch):
    assert set(VARIANTS) - set(variants_for(0.0, "cuda")) == {"s2sam compact", "s2sam kernel"}
    assert set(VARIANTS) - set(variants_for(0.9, "cuda")) == {"s2sam kernel"}
    monkeypatch.setattr(kernel, "library", lambda: None)
    assert set(variants_for(0.9, "cpu")) == set(VARIANTS)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_live_bytes_counts_each_storage_once_until_it_is_freed():
    with LiveBytes() as live:
        a = torch.ones(100)
        assert live.now == 400
        b = a.view(10, 10).t()[2:]
        assert live.now == 400
        c = a * 2
        assert live.now == 800
        del a, c
        assert live.now == 400
        del b
        assert (live.now, live.peak) == (0, 800)


@pytest.mark.parametrize(("variant", "buffers"), [("sgd", 2), ("sam", 2), ("s2sam", 3), ("released", 5)])
def test_what_is_kept_between_steps_is_what_the_hand_counts(variant, buffers):
    used = memory(COUNTABLE, VARIANTS[variant])
    assert used.parameters == SIZE
    assert used.kept == buffers * SIZE  # weights, momentum, and what the variant adds


@pytest.mark.parametrize(("variant", "extra"), [("sam", 1), ("s2sam", 1), ("released", 3)])
def test_the_extra_at_the_peak_is_whole_buffers(variant, extra):
    base, used = (memory(COUNTABLE, VARIANTS[name]) for name in ("sgd", variant))
    assert (used.peak - base.peak) / SIZE == pytest.approx(extra, abs=1e-3)
    assert base.peak > 3 * SIZE  # weights, momentum and gradients at the least


def test_a_compact_neighbour_is_a_value_and_a_place_for_each_live_weight():
    base, used = (memory(COUNTABLE, VARIANTS[name], sparsity=0.9) for name in ("sgd", "s2sam compact"))
    live = 10 * SQUARE * SQUARE - round(0.9 * 10 * SQUARE * SQUARE)
    assert used.kept - base.kept == live * (4 + 4)
    assert base.kept == 2 * SIZE + SIZE // 4  # a mask takes a byte a weight


def test_the_memory_table_says_which_targets_are_met(monkeypatch):
    monkeypatch.setattr(results, "BUFFERS", {"s2sam": (0.0, 1.0), "s2sam compact": (0.9, 0.1)})
    ticks = []
    table = memory_table("mine", COUNTABLE, sparsity=0.9, device="cpu", tell=lambda: ticks.append(1))
    assert len(ticks) == len(table.rows) == len(table.record["variants"])
    assert [sentence.rpartition(" ")[2] for sentence in table.sentences] == ["met.", "met.", "missed."]
    extra = {(v["variant"], v["sparsity"]): v["extra_kept"] for v in table.record["variants"]}
    assert extra["s2sam", 0.0] == extra["s2sam", 0.9] == 1.0
    assert extra["sgd", 0.9] == 0.0


# -- the command ------------------------------------------------------------------------------------------------------


def bench(tmp_path, capsys, *arguments):
    main(["bench", *arguments, "--quick", "--device", "cpu", "--out", str(tmp_path / "out")])
    told = read_json(tmp_path / "out" / "bench.json")
    page = (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in page + json.dumps(told)
    return told, capsys.readouterr().out, page


def test_step_writes_every_round_and_tells_both_ratios(tmp_path, capsys):
    threads = torch.get_num_threads()
    told, said, page = bench(tmp_path, capsys, "step", "--case", "resnet32", "transformer", "--threads", "1")
    assert torch.get_num_threads() == threads
    assert [case["case"] for case in told["cases"]] == ["resnet32", "transformer"]
    assert told["ran_on"]["machine"]["threads"] == 1
    assert told["ran_on"]["versions"]["torch"] == torch.__version__
    for case in told["cases"]:
        assert set(case["variants"]) == set(variants_for(0.0, "cpu"))
        for name, variant in case["variants"].items():
            assert len(variant["step_seconds"]) == told["settings"]["rounds"]
            assert all(seconds > 0 for seconds in variant["step_seconds"])
            assert (variant["wall_ratio"] is None) == (name == "sgd")
            pairs = zip(variant["step_seconds"], case["variants"]["sgd"]["step_seconds"], strict=True)
            if name != "sgd":
                assert variant["wall_ratio"]["value"] == pytest.approx(statistics.median(a / b for a, b in pairs))
            assert (variant["implied_ratio"] is None) == (name in ("sgd", "sam"))
        assert all(sentence in html.unescape(page) for sentence in case["found"])
    assert "S²-SAM: implied ratio" in said
    assert "the figures mean nothing" in " ".join(said.split())
    assert "<svg" in page


def test_a_step_may_have_another_base(tmp_path, capsys):
    told, said, _ = bench(tmp_path, capsys, "step", "--case", "mlp", "--base", "adamw", "--threads", "1")
    (case,) = told["cases"]
    assert case["base"] == told["settings"]["base"] == "adamw"
    assert {v["label"] for v in case["variants"].values()} >= {"AdamW", "AdamW again", "S²-SAM"}
    assert "SGD" not in said
    tiny = QUICK_CASES["mlp"]
    made = [Trainer(tiny, VARIANTS[name], base="adamw").optimizer for name in ("sgd", "s2sam")]
    assert [type(getattr(own, "base", own)) for own in made] == [torch.optim.AdamW] * 2


def test_a_sparse_step_measures_the_compact_form_too(tmp_path, capsys):
    told, said, _ = bench(tmp_path, capsys, "step", "--case", "transformer", "--sparsity", "0.8")
    assert set(told["cases"][0]["variants"]) == set(variants_for(0.8, "cpu")) >= {"s2sam", "s2sam compact"}
    assert "80% sparse" in said


def test_throughput_compares_each_method_of_table_4_that_there_is(tmp_path, capsys):
    told, said, _ = bench(tmp_path, capsys, "throughput")
    methods = told["cases"][0]["methods"]
    assert set(methods) == {"grasp", "rigl", "mest"} & set(METHODS) != set()
    for kinds in methods.values():
        assert kinds["sgd"]["ratio"] is None
        for name in ("sam", "s2sam"):
            ratios = [ours / plain for ours, plain in zip(kinds[name]["each"], kinds["sgd"]["each"], strict=True)]
            assert kinds[name]["ratio"]["value"] == pytest.approx(statistics.median(ratios))
        assert all(len(kind["each"]) == 6 and min(kind["each"]) > 0 for kind in kinds.values())
        assert all(seconds > 0 for kind in kinds.values() for seconds in kind["update_seconds"])
    assert {name for name, kinds in methods.items() if kinds["sgd"]["update_seconds"]} == {"rigl", "mest"}
    assert "grasp: S²-SAM" in said
    assert "its masks never change" in said
    assert said.count("a step with an update of the masks takes") == 2


@pytest.mark.parametrize(("method", "share"), [("grasp", 0.0), ("rigl", 0.01)])
def test_throughput_counts_updates_of_the_masks_by_their_share_of_a_run(monkeypatch, method, share):
    class Steady:
        """Two seconds a step, twelve with an update."""

        def __init__(self, *_, every=None, **__):
            self.device, self.every, self.taken = "cpu", every, 0

        def due(self, step):
            return self.every is not None and step % self.every == 0

        def step(self, batch):
            self.taken += 1
            return Timing(12.0 if self.due(self.taken) else 2.0, None)

    monkeypatch.setattr(results, "Trainer", Steady)
    monkeypatch.setattr(results, "IN_TABLE_4", (method,))
    monkeypatch.setattr(results, "updates", lambda *_: round(share * results.RUN))
    ticks = []
    table = throughput_table("x", TINY, rounds=6, sparsity=0.9, device="cpu", tell=lambda: ticks.append(1))
    each = table.record["methods"][method]["sgd"]["each"]
    assert each == pytest.approx([4 / (2.0 + share * 10.0)] * 6, rel=1e-4)  # four images
    assert len(ticks) == WARM_UP + timed(6, share)
    assert ("6.00 times as long, and counts as one in 100" in table.sentences[0]) == bool(share)


def test_updates_of_a_run_are_those_of_its_plan():
    assert results.updates("rigl", 0.9) == int(0.75 * results.RUN) // 100
    assert results.updates("grasp", 0.9) == 0


def test_memory_counts_dense_and_sparse(tmp_path, capsys):
    told, _, page = bench(tmp_path, capsys, "memory", "--case", "transformer")
    kept = {(v["variant"], v["sparsity"]): v["kept"] for v in told["cases"][0]["variants"]}
    assert kept["s2sam", 0.0] - kept["sgd", 0.0] == kept["s2sam", 0.9] - kept["sgd", 0.9] > 0
    assert "S²-SAM compact, 90% sparse" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("bench", "step, throughput, memory or sparse. (required)\n"),
        ("bench stp", "step"),
        ("bench step --case resnet23", "resnet32"),
        ("bench step --base lion", "adamw"),
        ("bench memory --base adamw", "--base is for step, not for memory"),
        ("bench step --rounds 5", "--rounds 5"),
        ("bench step --threads 0", "--threads 0"),
        ("bench step --device moon", "--device moon"),
        ("bench step --sparsity 1", "[0, 1)"),
        ("bench throughput --sparsity 0", "--sparsity 0"),
        ("bench sparse --case resnet23 --device cpu", "resnet32"),
        ("bench sparse --case resnet32 --model resnet32", "choose it with --model alone"),
        ("bench sparse --cases linear* --device cpu --sparsities 0.5 1", "[0, 1)"),
        ("bench sparse --device cpu --sparsities 0", "sparsity 0 is not usable"),
        ("bench sparse --device cpu --rounds 5", "--rounds 5"),
        ("bench sparse --model resnet32 --sparsities 0.5 0.9", "--sparsities is for sparse"),
        ("bench step --sparsities 0.5 0.9", "--sparsities is for sparse"),
        ("bench sparse --device meta", "--device meta"),
        ("bench sparse --quick --device cpu --sparsities 0.9999 --out here", "every layer keeps one"),
        ("bench sparse --model resnet23", "resnet32"),
        ("bench sparse --channels 1", "--channels 1"),
        ("bench sparse --channels 1.5", "--channels 1.5"),
        ("bench sparse --model resnet32 --quick --device cpu --sparsity 0.99999 --out here", "every layer keeps one"),
        ("bench sparse --batch-size 0", "--batch-size 0"),
        ("bench step --channels 0.5", "are for sparse, not for step"),
        ("bench memory --quick --device cpu --sparsity 0.99999 --out here", "every layer keeps one"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in fails(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused_before_anything_is_measured(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    for place in (tmp_path, tmp_path / "mine.txt", tmp_path / "mine.txt" / "below"):
        told = fails(capsys, "bench", "step", "--quick", "--device", "cpu", "--out", str(place))
        assert "give another --out" in told


# -- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mask_upkeep():
    place = Path(__file__).parents[2] / "benchmarks" / "mask_upkeep.py"
    spec = importlib.util.spec_from_file_location("mask_upkeep", place)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_upkeep_and_changes_are_shares_of_a_dense_step(mask_upkeep):
    dense = [Timing(10.0, 1.0)] * 4
    assert mask_upkeep.upkeep([Timing(9.0, 1.2)] * 4, dense).mean == pytest.approx(0.02)
    moving, due = [Timing(0.0, t) for t in (6.0, 1.0, 8.0, 1.0)], [True, False, True, False]
    assert mask_upkeep.change(moving, due, dense).mean == pytest.approx((5 + 7) / 2 / (100 * 10))


def test_the_script_measures(mask_upkeep, monkeypatch, capsys):
    monkeypatch.setitem(mask_upkeep.CASES, "resnet32", TINY)
    mask_upkeep.main(rounds=12)
    said = capsys.readouterr().out
    assert "keeping masks true" in said
    assert "changing them every 100 steps" in said
    with pytest.raises(fs.InputError, match="rounds"):
        mask_upkeep.main(rounds=11)
