"""Programs for XNNPACK run here, and say what torch says in int8."""

import re
import sys

import pytest
import torch
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.export import compile_xnnpack, load_xnnpack
from tests.export.test_ethos_u import net, unstructured


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A net, its masks, samples, what it is compiled to, and the file of it."""
    pytest.importorskip("executorch", reason="needs the extra edge")
    model, samples = net()
    masks = unstructured(model)
    compiled = compile_xnnpack(model, masks, samples)
    file = tmp_path_factory.mktemp("xnnpack") / "model.pte"
    file.write_bytes(compiled.pte)
    return masks, samples, compiled, file


def test_it_says_what_torch_says_in_int8(program):
    masks, samples, compiled, file = program
    runs, again = load_xnnpack(file), load_xnnpack(file)  # the two live together
    wanted = compiled.int8(samples)
    steps = wanted.unique().diff()
    step = steps[steps > 1e-6].min()
    for each in (runs, again):
        outputs = each(samples)
        assert outputs.shape == (len(samples), 10)
        assert (outputs - wanted).abs().max() < 1.01 * step
    assert torch.equal(runs(samples.contiguous(memory_format=torch.channels_last)), runs(samples))
    assert compiled.on_cpu == {}
    for weight, mask in zip(compiled.int8.weights(), masks.values(), strict=True):
        assert not weight[~mask].any()


def test_inputs_of_another_shape_or_type_are_a_line(program):
    _, samples, compiled, file = program
    runs = load_xnnpack(file)
    for inputs in (samples[:, :, :5], samples.double()):
        with pytest.raises(
            InputError, match=r"does not take inputs .*give torch\.float32 with samples of \(3, 10, 10\)"
        ):
            runs(inputs)
        with pytest.raises(InputError, match=r"int8 network does not take inputs .*samples of \(3, 10, 10\)"):
            compiled.int8(inputs)


def test_a_net_of_words_takes_their_numbers(tmp_path):
    pytest.importorskip("executorch", reason="needs the extra edge")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Flatten(), nn.Linear(48, 4)).eval()
    words = torch.randint(16, (40, 6))
    compiled = compile_xnnpack(model, {}, words)
    (tmp_path / "words.pte").write_bytes(compiled.pte)
    runs = load_xnnpack(tmp_path / "words.pte")
    wanted = compiled.int8(words)
    assert (runs(words) - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert wanted.std(0).min() > 0.1 * wanted.abs().max(), "outputs that are all the same prove nothing"
    with pytest.raises(InputError, match=r"give torch\.int64 with samples of \(6,\)"):
        runs(words.float())


def test_a_damaged_file_is_a_line(program, tmp_path):
    whole = program[3].read_bytes()
    for content in (b"", b"hello, world", whole[:100], whole[: len(whole) // 2]):
        (tmp_path / "spoilt.pte").write_bytes(content)
        with pytest.raises(InputError, match=re.escape(f"cannot run '{tmp_path / 'spoilt.pte'}'")) as caught:
            load_xnnpack(tmp_path / "spoilt.pte")
        assert "\n" not in str(caught.value)


def test_without_the_extra_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.quantizer.xnnpack_quantizer", None)
    with pytest.raises(InputError, match=r"needs 'executorch': .*flatsparse\[edge\]"):
        compile_xnnpack(nn.Linear(4, 4), {}, torch.randn(8, 4))
