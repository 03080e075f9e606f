"""What ``flatsparse bench sparse`` measures; no assertion here is about how long anything takes."""

import math
import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from flatsparse.cli import main
from flatsparse.common.json_files import read_json
from flatsparse.experiments.bench import sparse, sparse_timing
from flatsparse.experiments.bench.channels import without_channels
from flatsparse.experiments.bench.sparse_cases import CASES, KINDS, QUICK_CASES
from flatsparse.experiments.bench.sparse_curves import BATCH, SPARSITY, crossing, crossing_text
from flatsparse.experiments.bench.sparse_forms import (
    ACCELERATED,
    BLOCKS,
    CONTROL,
    CSR,
    DENSE,
    FORMS,
    MASKED,
    SMALL,
    apart,
    channels_left,
    forms,
    timed,
)
from flatsparse.experiments.bench.sparse_picture import speeds
from flatsparse.experiments.bench.sparse_rivals import RIVALS
from flatsparse.experiments.bench.sparse_tables import speed_table
from flatsparse.experiments.stats import Interval
from flatsparse.sparse.layers import prunable

from .test_bench import bench

OURS = {DENSE, CONTROL, MASKED, ACCELERATED, SMALL}


def weights(model):
    return sum(p.numel() for p, _ in prunable(model).values())


# -- cases and forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_a_narrower_layer_has_the_share_of_the_weights_and_takes_its_inputs(share):
    for case in (CASES["linear-1024x1024-b128"], CASES["linear-4096x1024-b128"], CASES["conv-64"]):
        narrow, shape = case.narrower(share)
        assert weights(narrow) / weights(case.model()) == pytest.approx(share, rel=0.2)
        assert len(narrow(torch.zeros(shape))) == case.inputs[0] == shape[0]


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
def test_the_channels_that_are_left_are_those_nearest_to_the_share(share):
    model = QUICK_CASES["resnet8"].model()
    masks, left = channels_left(model, share)
    total = weights(model)
    assert left == sum(int(mask.sum()) for mask in masks.values()) / total
    every = [
        sum(int(m.sum()) for m in without_channels(model, gone / 200).values()) / total for gone in range(200)
    ]  # one by one, the plain way
    nearest = min(abs(math.log(each / share)) for each in every)
    assert abs(math.log(left / share)) == pytest.approx(nearest, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUICK_CASES)
def test_forms_of_one_model_compute_the_same_before_and_after_steps(name, kind):
    case = QUICK_CASES[name]
    there, left_out = forms(case, 0.8, kind, time.thread_time)
    blocks = {BLOCKS} if name.startswith("linear") else set()
    assert set(there) | set(left_out) == OURS | blocks | set(RIVALS) | ({CSR} if kind == "inference" else set())
    same = {name for name, form in there.items() if form.same} - set(RIVALS)  # which may be wrong for small batches
    assert same == {MASKED, ACCELERATED} | ({CSR} if kind == "inference" else set())
    assert all(apart(there[name], there[MASKED]) < 1e-5 for name in same)
    for form in there.values():
        assert timed(form, time.thread_time) >= 0
    assert apart(there[ACCELERATED], there[MASKED]) < 1e-3
    assert apart(there[CONTROL], there[DENSE]) == 0
    mask = there[MASKED].training.masks
    active = sum(int(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
    assert active == pytest.approx(there[MASKED].share, rel=0.1)
    assert there[SMALL].share == pytest.approx(0.2, rel=0.5)
    assert there[SMALL].share == weights(there[SMALL].model) / weights(case.model())


def test_a_training_step_of_a_network_keeps_the_masks_and_moves_the_weights():
    there, _ = forms(QUICK_CASES["mlp-32"], 0.8, "training", time.thread_time)
    form = there[MASKED]
    before = {name: p.detach().clone() for name, p in form.model.named_parameters()}
    timed(form, time.thread_time)
    for name, mask in form.training.masks.items():
        now = dict(form.model.named_parameters())[name]
        assert not now[~mask].any()
        assert not torch.equal(now, before[name])


def test_training_of_a_layer_gives_gradients_and_moves_no_weight():
    there, _ = forms(QUICK_CASES["linear-64x64-b8"], 0.8, "training", time.thread_time)
    form = there[DENSE]
    before = form.model.weight.detach().clone()
    for _ in range(2):  # the second does not add to the first
        timed(form, time.thread_time)
    dy = torch.ones(8, 64)
    torch.testing.assert_close(form.inputs.grad, dy @ before)
    torch.testing.assert_close(form.model.weight.grad, dy.t() @ form.inputs.detach())
    assert torch.equal(form.model.weight, before)


# -- timing -----------------------------------------------------------------------------------------------------------


def test_each_round_runs_every_form_once_in_an_order_of_its_own():
    ran, told = [], []
    runs = {name: lambda name=name: ran.append(name) or float(len(ran)) for name in "abcd"}
    times = sparse_timing.interleaved(runs, rounds=20, seconds=1.0, tell=told.append)
    rounds = [ran[i : i + 4] for i in range(0, len(ran), 4)]
    assert len(rounds) == 20
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len({tuple(each) for each in rounds}) > 5
    assert times["b"] == [float(4 * number + each.index("b") + 1) for number, each in enumerate(rounds)]
    assert sum(told) == pytest.approx(1.0)


@pytest.mark.parametrize(("cost", "rounds"), [(0.001, 40), (0.1, 15), (10.0, 6)])
def test_as_many_rounds_are_taken_as_fit_the_time(monkeypatch, cost, rounds):
    now, told = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run():
        now[0] += cost
        return cost

    times = sparse_timing.interleaved({"dense": run, "other": run}, rounds=None, seconds=2.99, tell=told.append)
    assert [len(each) for each in times.values()] == [rounds, rounds]
    assert sum(told) == pytest.approx(1.0)
    assert min(told) >= 0


def test_speeds_are_medians_of_ratios_within_a_round():
    times = {"dense": [2.0, 3.0, 4.0] * 3, "other": [1.0, 3.0, 1.0] * 3}
    found = sparse_timing.speeds(times)
    assert set(found) == {"other"}
    assert found["other"].mean == statistics.median([2.0, 1.0, 4.0])


def test_a_form_that_computes_something_else_is_left_out(monkeypatch):
    def wrong(name, model, masks, inputs, *, whole):
        torch.nn.init.normal_(model.weight)
        return model

    monkeypatch.setattr("flatsparse.experiments.bench.sparse_forms.converted", wrong)
    record = sparse_timing.measured(QUICK_CASES["linear-64x64-b8"], 0.8, "inference", threads=1, rounds=6)
    assert set(record["forms"]) == OURS | {BLOCKS, CSR}
    assert all("differ from the masked model's" in record["left_out"][name] for name in RIVALS)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rival_that_takes_other_threads_has_no_time_on_one(monkeypatch, threads):
    monkeypatch.setattr("flatsparse.experiments.bench.sparse_forms.converted", lambda name, model, *_, whole: model)
    used = [0.0]

    def process_time():
        used[0] += 1.0
        return used[0]

    monkeypatch.setattr(time, "process_time", process_time)  # a second a step, of which this thread has hardly any
    record = sparse_timing.measured(QUICK_CASES["linear-64x64-b8"], 0.8, "inference", threads=threads, rounds=6)
    assert set(record["left_out"]) == (set(RIVALS) if threads == 1 else set())
    assert set(record["forms"]) == OURS | {BLOCKS, CSR} | (set() if threads == 1 else set(RIVALS))


# -- break-even -------------------------------------------------------------------------------------------------------


def exactly(value, low=None, high=None):
    return Interval(value, value if low is None else low, value if high is None else high, 6)


@pytest.mark.parametrize("at", [0.6, 0.83, 0.93])
def test_a_power_of_what_is_left_breaks_even_where_it_is_one(at):
    curve = {s: exactly(((1 - at) / (1 - s)) ** 0.7) for s in (0.5, 0.8, 0.9, 0.95, 0.98)}
    assert crossing(curve, SPARSITY).at == pytest.approx(at)
    assert crossing_text(curve, SPARSITY) == f"{100 * at:.3g} %"


def test_a_crossing_is_for_good_and_beyond_the_noise():
    speeds = dict(zip((0.5, 0.8, 0.9, 0.95), (1.2, 0.9, 1.1, 2.0), strict=True))
    found = crossing({s: exactly(v) for s, v in speeds.items()}, SPARSITY)
    assert 0.8 < found.at < 0.9
    assert not found.before
    noisy = {s: exactly(v, v / 2.5, v) for s, v in speeds.items()}
    assert crossing_text(noisy, SPARSITY) == "not up to 95 %"
    assert crossing_text({512: exactly(1.5), 2048: exactly(2.0)}, BATCH) == "below 512"
    assert crossing_text({512: exactly(1.5), 2048: exactly(0.9)}, BATCH) == "not up to 2048"


# -- tables and pictures ----------------------------------------------------------------------------------------------


def point(sparsity, *, other, left_out=None, layers=()):
    def form(value):
        return {"speed": value and {"value": value, "low": value - 0.01, "high": value + 0.01}, "seconds": [0.002] * 6}

    return {
        "sparsity": sparsity,
        "forms": {DENSE: form(None), CONTROL: form(1.02), MASKED: form(0.99), ACCELERATED: form(other)},
        "left_out": left_out or {},
        "layers": dict(enumerate(layers)),
    }


@pytest.fixture
def table():
    few = {"sparselab": "it has linear layers only"}
    measured = {
        0.5: point(0.5, other=0.5, left_out=few, layers=("dense: too many", "sparse")),
        0.9: point(0.9, other=2.5, left_out={**few, "sparseprop": "not installed: build it"}, layers=("sparse",)),
    }
    return speed_table("mine", "my layer", {"training": measured}, threads=1, said=["Something."])


def test_a_table_has_a_row_for_each_form_and_a_column_for_each_sparsity(table):
    assert table.title == "my layer, 1 thread"
    assert table.head == ("times as fast as dense", "50 %", "90 %")
    assert table.rows[0] == ("training, dense, ms", "2", "2")
    assert table.rows[-1] == ("training, accelerated", "0.50 [0.49–0.51]", "2.50 [2.49–2.51]")
    assert [len(row) for row in table.rows] == [3] * 4


def test_sentences_say_where_a_form_pays_and_what_is_missing(table):
    assert table.sentences == [
        "Something.",
        "Break-even by zeros, training: accelerated 75 %.",
        "Accelerated layers that ran densely, training: 1 of 2 at 50 %; the first: too many.",
        "sparselab is left out: it has linear layers only.",
        "Noise: a second, identical dense form is 1.02 to 1.02 times as fast; differences of that size say nothing.",
    ]
    assert table.record["break_even"]["training"] == {MASKED: None, ACCELERATED: pytest.approx(0.75, abs=0.001)}


def test_the_picture_has_a_line_for_each_form_and_a_ring_at_the_break_even(table):
    figure = speeds([table, table])
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 2
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    assert {MASKED, ACCELERATED} <= set(lines)
    assert CONTROL not in lines
    assert list(lines[ACCELERATED].get_ydata()) == [0.5, 2.5]
    rings = [line for line in panels[0].get_lines() if line.get_markerfacecolor() == "none"]
    assert [SPARSITY.value(ring.get_xdata()[0]) for ring in rings] == [pytest.approx(0.75, abs=0.001)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [MASKED, ACCELERATED]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_measures_every_case_in_every_form(tmp_path, capsys):
    threads = torch.get_num_threads()
    told, said, page = bench(tmp_path, capsys, "sparse", "--sparsities", "0.9", "0.5")
    assert torch.get_num_threads() == threads
    assert told["settings"]["threads"] == told["ran_on"]["machine"]["threads"] == 1
    assert [case["case"] for case in told["cases"]] == list(QUICK_CASES)
    for case in told["cases"]:
        for kind in KINDS:
            assert [found["sparsity"] for found in case["points"][kind]] == [0.5, 0.9]
            for found in case["points"][kind]:
                assert list(found["forms"]) == [name for name in FORMS if name in found["forms"]]
                assert set(found["forms"]) >= OURS
                dense = found["forms"][DENSE]["seconds"]
                for name, form in found["forms"].items():
                    assert len(form["seconds"]) == 6
                    ratios = [a / b for a, b in zip(dense, form["seconds"], strict=True)]
                    if name != DENSE:
                        assert form["speed"]["value"] == pytest.approx(statistics.median(ratios), rel=1e-3)
    assert (tmp_path / "out" / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("<svg") == len(QUICK_CASES)
    assert "inference, accelerated" in said
    for name in {name for case in told["cases"] for name in case["points"]["inference"][0]["left_out"]}:
        assert said.count(f"{name} is left out, not installed") <= 1


def test_patterns_choose_cases_and_several_threads_are_timed_by_the_wall(tmp_path, capsys):
    told, said, _ = bench(tmp_path, capsys, "sparse", "--cases", "mlp*", "--sparsity", "0.8", "--threads", "2")
    assert [case["case"] for case in told["cases"]] == ["mlp-32"]
    assert told["cases"][0]["threads"] == 2
    assert told["settings"]["sparsities"] == "0.8"
    assert "2 threads" in said


def test_what_is_measured_is_written_before_the_next_case_begins(tmp_path, monkeypatch):
    ordinary, calls = sparse.measured, []

    def ends(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:  # the second case
            raise KeyboardInterrupt
        return ordinary(*arguments, **options)

    monkeypatch.setattr(sparse, "measured", ends)
    with pytest.raises(SystemExit) as end:
        main(["bench", "sparse", "--quick", "--device", "cpu", "--sparsities", "0.5", "--out", str(tmp_path / "out")])
    assert end.value.code == 130
    assert [case["case"] for case in read_json(tmp_path / "out" / "bench.json")["cases"]] == [next(iter(QUICK_CASES))]


def test_the_feed_forward_case_is_the_half_of_a_block():
    torch.manual_seed(0)
    block, x = QUICK_CASES["feedforward-16"].model()[0], torch.randn(4, 16)
    hidden = F.gelu(F.layer_norm(x, (16,)) @ block.up.weight.t() + block.up.bias)
    torch.testing.assert_close(block(x), x + hidden @ block.down.weight.t() + block.down.bias)
