"""Programs for Ethos-U: zeros stay zero, what Vela compiles says what torch says in int8, and the estimate is Vela's."""

import dataclasses
import sys

import pytest
import torch
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.export import compile_ethos_u
from flatsparse.export.ethos_u import TARGETS
from flatsparse.export.extras import c_quiet, needed
from flatsparse.export.vela import AREAS, Estimate, Traffic, read_summary, total
from flatsparse.sparse.n_of_m import NofM
from tests.export.nets import masked


@pytest.fixture(scope="module")
def edge():
    for module in ("executorch", "ethosu", "tosa_reference_model"):
        pytest.importorskip(module, reason="needs the extra edge")


class Net(nn.Module):
    """A convolution with batch norm, a depthwise one, one without, and a matrix; ``middle`` stands between them."""

    def __init__(self, middle=torch.relu):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, bias=False)
        self.second = nn.Conv2d(16, 32, 3, stride=2)
        self.last = nn.Linear(288, 10)
        self.middle = middle

    def forward(self, x):
        x = self.depthwise(torch.relu(self.norm(self.first(x))))
        x = torch.relu(self.second(self.middle(x)))
        return self.last(x.flatten(1))


def net(middle=torch.relu):
    """A net whose batch norm has statistics, and samples."""
    torch.manual_seed(0)
    model, samples = Net(middle), torch.randn(40, 3, 10, 10)
    with torch.no_grad():
        nn.init.uniform_(model.norm.weight, 0.5, 2.0)
        for weight in weights(model).values():  # so that a fifth of the weights still carries the input to the outputs
            weight.normal_(0, 3 / weight[0].numel() ** 0.5)
        model.train()(samples)
    return model.eval(), samples


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}


def unstructured(model):
    masks = {name: torch.rand(p.shape) < 0.2 for name, p in weights(model).items()}
    masks["first.weight"][3] = False  # a channel without any
    return masks


@pytest.fixture(scope="module")
def sparse(edge):
    """A net, its masks, samples, what it is compiled to and the stages that were reported."""
    model, samples = net()
    masks, stages = unstructured(model), []
    return model, masks, samples, compile_ethos_u(model, masks, samples, report=stages.append), stages


def test_what_is_masked_is_exactly_zero_in_int8_with_batch_norm_folded_too(sparse):
    _, masks, _, compiled, _ = sparse
    found = compiled.int8.weights()
    assert [tuple(w.shape) for w in found] == [tuple(m.shape) for m in masks.values()]
    for weight, mask in zip(found, masks.values(), strict=True):
        assert not weight[~mask].any()
        assert weight[mask].count_nonzero() > 0.9 * mask.sum()
    assert found[0].abs().flatten(1).amax(1).tolist() == [0 if c == 3 else 127 for c in range(16)]


def test_the_compiled_program_says_what_torch_says_in_int8_and_nearly_what_the_net_says(sparse):
    model, masks, samples, compiled, stages = sparse
    assert stages == ["quantizing", "compiling", "estimating"]
    with torch.no_grad():
        unmasked, wanted = model(samples), masked(model, masks)(samples)
    outputs = compiled.int8(samples)
    assert (unmasked - wanted).abs().max() > 0.3 * wanted.abs().max(), "zeros that change nothing prove nothing"
    assert (outputs - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert (outputs.amax(0) - outputs.amin(0)).min() > 0.2 * outputs.abs().max(), (
        "outputs that are all the same prove nothing"
    )
    steps = outputs.unique().diff()
    step = steps[steps > 1e-6].min()
    assert (compiled.reference(samples[:6]) - outputs[:6]).abs().max() < 1.01 * step
    assert compiled.on_cpu == {}
    assert compiled.pte[4:6] == b"ET"  # executorch's mark


def test_the_estimate_is_of_weights_in_flash_and_can_be_of_weights_on_the_chip(sparse):
    compiled = sparse[3]
    chip = compiled.estimate_in("sram")
    assert compiled.estimate == compiled.estimate_in(compiled.memory) == compiled.estimate_in("flash")
    assert {area for area, traffic in compiled.estimate.traffic.items() if traffic.whole} == {"sram", "off_chip_flash"}
    assert {area for area, traffic in chip.traffic.items() if traffic.whole} == {"sram"}
    assert chip.cycles < compiled.estimate.cycles
    with pytest.raises(InputError, match="unknown memory 'dram'"):
        compiled.estimate_in("dram")


def test_int8_outputs_do_not_depend_on_the_batch(sparse):
    _, _, samples, compiled, _ = sparse
    int8 = compiled.int8
    whole = int8(samples)
    assert torch.equal(int8(samples[:7]), whole[:7])
    assert torch.equal(torch.cat([int8.one(sample[None]) for sample in samples[:7]]), whole[:7])


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_a_u85_does_half_of_the_multiplications_of_2_of_4_and_zeros_take_few_bytes():
    model, samples = net()
    two_of_four = {
        name: NofM(2, 4).keep(p) if p.shape[1] % 4 == 0 else torch.ones_like(p, dtype=torch.bool)
        for name, p in weights(model).items()
    }
    dense, half, sparse = (
        compile_ethos_u(model, masks, samples).estimate for masks in ({}, two_of_four, unstructured(model))
    )
    assert 0.4 < half.macs / dense.macs < 0.9  # the first and the depthwise layer stay
    assert sparse.macs == dense.macs
    assert sparse.encoded_weight_bytes < 0.7 * dense.encoded_weight_bytes
    assert dense.weight_bytes == half.weight_bytes >= sum(p.numel() for p in weights(model).values())
    assert dense.inferences_per_second == pytest.approx(dense.clock / dense.cycles)
    assert dense.traffic["sram"].read > 0 < dense.traffic["sram"].used
    old = compile_ethos_u(model, two_of_four, samples, target="ethos-u55-128").estimate
    assert old.macs > 0.9 * dense.macs
    assert "off_chip_flash" in old.traffic


@pytest.mark.usefixtures("edge")
def test_what_is_left_to_the_cpu_is_named_and_the_parts_add_up():
    model, samples = net(lambda x: torch.sort(x, dim=3).values)
    compiled = compile_ethos_u(model, unstructured(model), samples)
    assert compiled.on_cpu["aten.sort.default"] == 1
    assert len(compiled._tosa) == 2
    assert torch.equal(compiled.reference(samples[:4]), compiled.int8(samples[:4]))


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_a_model_in_channels_last_compiles_to_the_same():
    model, samples = net()
    plain = compile_ethos_u(model, {}, samples)
    other = compile_ethos_u(
        model.to(memory_format=torch.channels_last), {}, samples.contiguous(memory_format=torch.channels_last)
    )
    assert other.estimate == plain.estimate
    assert torch.equal(other.int8(samples), plain.int8(samples))


@pytest.mark.slow
@pytest.mark.usefixtures("edge")
def test_nothing_is_printed_and_nothing_left_in_a_folder_even_one_whose_name_has_a_space(tmp_path, capfd):
    model, samples = net()
    for name in ("plain", "with space"):
        (tmp_path / name).mkdir()
        compiled = compile_ethos_u(model, {}, samples, folder=tmp_path / name)
        compiled.reference(samples[:2])
        assert list((tmp_path / name).iterdir()) == []
    assert capfd.readouterr() == ("", "")


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.usefixtures("edge")
@pytest.mark.parametrize(
    ("model", "told"), [(Branches(), "into int8 .Data-dependent branching"), (Pair(), "not one tensor")]
)
def test_a_model_that_torch_cannot_export_is_a_line(model, told):
    with pytest.raises(InputError, match=told) as caught:
        compile_ethos_u(nn.Sequential(nn.Linear(4, 4), model), {}, torch.randn(8, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("edge")
def test_the_targets_are_those_of_vela():
    from ethosu.vela.architecture_features import Accelerator

    assert sorted(TARGETS) == sorted(Accelerator.member_list())


def test_an_unknown_target_is_a_line():
    with pytest.raises(InputError, match=r"unknown target 'ethos-u86-256' .*ethos-u85-256"):
        compile_ethos_u(nn.Linear(4, 4), {}, torch.randn(8, 4), target="ethos-u86-256")


@pytest.mark.parametrize("module", ["executorch.backends.arm.quantizer", "executorch.backends.arm.ethosu"])
def test_without_the_extra_it_says_so(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"needs 'executorch': .*flatsparse\[edge\]"):
        compile_ethos_u(nn.Linear(4, 4), {}, torch.randn(8, 4))


def test_an_extra_that_does_not_load_is_told_from_one_that_is_absent(tmp_path, monkeypatch):
    (tmp_path / "spoilt_extra.py").write_text("raise ImportError('undefined symbol: _ZN5torch')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"'spoilt_extra', which does not load here \(undefined symbol: _ZN5torch\)"):
        needed("spoilt_extra", "edge")
    with pytest.raises(InputError, match="needs 'no_such_extra': install it"):
        needed("no_such_extra.part", "edge")


def test_a_summary_of_vela_is_read(tmp_path):
    row = {"system_config": "System", "memory_mode": "Mode", "core_clock": 5e8, "cycles_total": 1000.0, "nn_macs": 64}
    row |= {"total_original_weights": 300, "total_npu_encoded_weights": 200}
    for place, area in enumerate(AREAS):
        row |= {f"{area}_memory_used": 0.5 if area == "sram" else 0.0, f"{area}_total_bytes": 90 * (place < 2)}
        for what, count in (("feature_map", 7), ("weight", 20)):
            row |= {f"{area}_{what}_read_bytes": count * (place < 2), f"{area}_{what}_write_bytes": 3 * (place < 2)}
    (tmp_path / "s.csv").write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    one = read_summary(tmp_path / "s.csv")
    assert one == Estimate(
        *("System", "Mode", 5e8, 1000, 64, 300, 200),
        {"sram": Traffic(27, 6, 90, 512), "dram": Traffic(27, 6, 90, 0)},
    )
    assert total([one]) == one
    two = total([one, one])
    assert (two.cycles, two.macs, two.weight_bytes, two.encoded_weight_bytes) == (2000, 128, 600, 400)
    assert two.traffic["sram"] == Traffic(54, 12, 180, 512)
    flash = dataclasses.replace(one, traffic={"off_chip_flash": Traffic(1, 0, 2, 100)})
    assert total([flash, flash]).traffic["off_chip_flash"] == Traffic(2, 0, 4, 200)  # where weights of both stay
    assert two.inferences_per_second == one.inferences_per_second / 2


def test_c_is_quiet_and_then_heard_again(capfd):
    import ctypes

    with c_quiet():
        print("python")
        ctypes.pythonapi.printf(b"c\n")
    ctypes.pythonapi.printf(b"again\n")
    ctypes.pythonapi.fflush(None)
    assert "again" in (heard := capfd.readouterr().out)
    assert "c\n" not in heard.replace("python", "")
