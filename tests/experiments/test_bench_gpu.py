"""2:4 sparsity in ``flatsparse bench sparse --device cuda``: all but its clock, with kernels of our own in place of torch's."""

import dataclasses
import types

import pytest
import torch
import torch.nn.functional as F

from flatsparse.cli import bench as command
from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.experiments.bench import sparse_gpu, suite
from flatsparse.experiments.bench.sparse import Survey, survey
from flatsparse.experiments.bench.sparse_cases import KINDS
from flatsparse.experiments.bench.sparse_curves import BATCH
from flatsparse.experiments.bench.sparse_forms import CONTROL, DENSE
from flatsparse.experiments.bench.sparse_gpu import CompressedLinear, ForwardCompressed, GPUCase, two_of_four
from flatsparse.experiments.run.environment import environment

RIGHT, WRONG = sparse_gpu.BACKENDS
TINY = GPUCase(16, torch.float32, (8, 32))


class Compressed(torch.Tensor):
    """A dense tensor in place of a compressed one."""

    def to_dense(self):
        return self.as_subclass(torch.Tensor)


def kernel(*, times, packed):
    def compress(weight):
        packed.append(weight.shape)
        return (times * two_of_four(weight)).as_subclass(Compressed)

    return types.SimpleNamespace(from_dense=compress, prune_dense_static_sort=compress)


def refuses(weight):
    raise NotImplementedError("no such kernel\nat line 1")


@pytest.fixture
def packed(monkeypatch):
    """Kernels of which one computes what it should, and what the first was given to compress."""
    shapes = []
    monkeypatch.setattr(torch.sparse, sparse_gpu.BACKENDS[RIGHT], kernel(times=1, packed=shapes))
    broken = kernel(times=1, packed=[])
    broken.from_dense = lambda weight: weight.roll(1, 0)
    broken.prune_dense_static_sort = refuses
    monkeypatch.setattr(torch.sparse, sparse_gpu.BACKENDS[WRONG], broken)
    return shapes


def test_two_of_four_are_the_two_largest_of_each_four_inputs():
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    plain = weight.clone()
    for row in plain:
        for start in range(0, 12, 4):
            order = sorted(range(start, start + 4), key=lambda column, row=row: abs(row[column]))
            row[order[:2]] = 0
    assert torch.equal(two_of_four(weight), plain)


def test_a_layer_that_is_compressed_for_its_forward_has_the_gradients_of_its_weight():
    source = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(8, 16, generator=source).requires_grad_() for _ in "ab")
    dy = torch.randn(8, 8, generator=source)
    ForwardCompressed.apply(x, weight, torch.clone).backward(dy)
    plain_x, plain = (t.detach().requires_grad_() for t in (x, weight))
    F.linear(plain_x, plain).backward(dy)
    torch.testing.assert_close((x.grad, weight.grad), (plain_x.grad, plain.grad))


def test_a_compressed_layer_has_the_gradients_of_the_compressed_weight():
    source = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(8, 16, generator=source).requires_grad_() for _ in "ab")
    dy = torch.randn(8, 8, generator=source)
    CompressedLinear.apply(x, weight, two_of_four).backward(dy)
    plain_x, plain = x.detach().requires_grad_(), two_of_four(weight.detach()).requires_grad_()
    F.linear(plain_x, plain).backward(dy)
    torch.testing.assert_close(x.grad, plain_x.grad)
    torch.testing.assert_close(weight.grad, plain.grad)  # of pruned weights too
    assert (weight.grad != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_backends_are_timed_and_one_that_is_wrong_is_left_out(packed, kind):
    record = sparse_gpu.measured(TINY, 8, kind, "cpu", rounds=6)
    forward_only = [RIGHT + sparse_gpu.FORWARD_ONLY] if kind == "training" else []
    assert list(record["forms"]) == [DENSE, CONTROL, RIGHT, *forward_only]
    assert all(len(form["seconds"]) == 6 for form in record["forms"].values())
    assert set(record["left_out"]) == {WRONG} | ({WRONG + sparse_gpu.FORWARD_ONLY} if kind == "training" else set())
    assert ("wrong by" if kind == "inference" else "no such kernel") in record["left_out"][WRONG]
    assert "\n" not in record["left_out"][WRONG]
    # Compressed once to be checked; then in training in every step, else never again.
    steps = (1 + sparse_gpu.WARM_UP + 6 * sparse_gpu.CALLS) if kind == "training" else 0
    assert packed == [(16, 16)] * ((1 + steps) * (1 + len(forward_only)))


def test_a_survey_of_them_has_columns_of_batches(packed):
    told = []
    chosen = Survey({"tiny": TINY}, (), "cpu", rounds=6)
    (table,) = chosen.tables(told.append)
    assert chosen.axis is BATCH
    assert chosen.pieces == 4
    assert sum(told) == pytest.approx(4)
    assert table.title == "linear 16 → 16, float32, GPU"
    assert table.head[1:] == ("8", "32")
    assert {RIGHT, RIGHT + sparse_gpu.FORWARD_ONLY, CONTROL} == set(table.speeds["training"])
    assert any(sentence.startswith(f"Break-even by batch, training: {RIGHT} ") for sentence in table.sentences)
    assert any(sentence.startswith(f"{WRONG} is left out") for sentence in table.sentences)
    chosen.check()


def test_a_device_needs_kernels_and_sparsities_are_not_for_it(monkeypatch):
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    options = {"device": "cuda", "rounds": None, "quick": False}
    assert list(survey(["linear-8192*"], [], **options).cases) == ["linear-8192-float16", "linear-8192-bfloat16"]
    with pytest.raises(InputError, match="--sparsities is for --device cpu"):
        survey([], [0.9], **options)
    with pytest.raises(InputError, match="unknown case 'mlp"):
        survey(["mlp*"], [], **options)
    capability[0] = (7, 5)
    with pytest.raises(InputError, match="an old one has no 2:4 kernels"):
        survey([], [], **options)
    with pytest.raises(InputError, match="give --device cpu or cuda"):
        survey([], [], **{**options, "device": "meta"})


def test_the_command_writes_table_picture_and_report(packed, monkeypatch, tmp_path, capsys):
    ordinary = sparse_gpu.measured

    def on_cpu(case, batch, kind, device, **options):
        assert device == "cuda"
        return ordinary(dataclasses.replace(case, dtype=torch.float32), batch, kind, "cpu", **options)

    monkeypatch.setattr(sparse_gpu, "measured", on_cpu)
    monkeypatch.setattr(sparse_gpu, "check_device", lambda device: None)
    monkeypatch.setattr(suite, "usable_device", lambda name: name)
    monkeypatch.setattr(command, "environment", lambda device: environment())
    main(["bench", "sparse", "--quick", "--device", "cuda", "--out", str(tmp_path / "out")])
    (case,) = read_json(tmp_path / "out" / "bench.json")["cases"]
    assert (case["case"], case["threads"]) == ("linear-256-float16", None)
    assert [point["batch"] for point in case["points"]["training"]] == [64, 128]
    assert f"training, {RIGHT}" in capsys.readouterr().out
    assert (tmp_path / "out" / "speed.png").is_file()
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_torchs_own_kernels_run(kind):
    record = sparse_gpu.measured(sparse_gpu.QUICK_CASES["linear-256-float16"], 128, kind, "cuda", rounds=6)
    assert set(record["forms"]) >= {DENSE, CONTROL}
    assert len(record["forms"]) > 2, record["left_out"]
