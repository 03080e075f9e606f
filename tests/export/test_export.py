"""Every form of every model, written and read back."""

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.export import (
    load_csr,
    load_onnx,
    load_small,
    save_csr,
    save_dense,
    save_onnx,
    save_small,
    to_csr,
    to_semi_structured,
    with_zeros,
)
from flatsparse.export.csr import SparseRows
from flatsparse.sparse.n_of_m import NofM
from tests.export.nets import NETS, masked, net

LARGE = {"resnet34", "resnet50"}
every = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in NETS])


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@every
def test_dense_with_zeros_loads_into_the_unmodified_model(name, tmp_path):
    model, masks, inputs = net(name)
    save_dense(tmp_path / "dense.safetensors", model, masks)
    plain = NETS[name][0]()
    plain.load_state_dict(load_file(tmp_path / "dense.safetensors"))
    with torch.no_grad():
        assert torch.equal(plain.eval()(inputs), masked(model, masks)(inputs))
    found = fs.masks_from(tmp_path / "dense.safetensors")
    for tied, p in model.named_parameters(remove_duplicate=False):
        if (own := next((n for n in masks if model.get_parameter(n) is p), None)) is not None:
            assert torch.equal(found.pop(tied), masks[own] & (p != 0))
    assert not found


@every
def test_masks_survive(name, tmp_path):
    _, masks, _ = net(name)
    fs.save_masks(tmp_path / "masks.safetensors", masks, method="static", step=5)
    found = fs.masks_from(tmp_path / "masks.safetensors")
    assert list(found) == list(masks)
    assert all(torch.equal(found[n], masks[n]) for n in masks)


@every
@torch.no_grad()
def test_csr_says_what_the_masked_model_says(name, tmp_path):
    model, masks, inputs = net(name, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    sparse = to_csr(model, masks)
    wanted = masked(model, masks)(inputs)
    assert difference(sparse(inputs), wanted) < 1e-10
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    save_csr(tmp_path / "csr.safetensors", sparse)
    fresh = NETS[name][0]().double()
    again = load_csr(tmp_path / "csr.safetensors", fresh)
    assert torch.equal(again(inputs), sparse(inputs))
    assert not any(isinstance(module, SparseRows) for module in fresh.modules())


def test_a_form_made_amid_training_has_the_true_weights(tmp_path):
    """S²-SAM stands at a neighbour between forward and step; torch.compile puts a name before the model's own."""
    model, _, inputs = net("digitnet")
    compiled = torch.compile(model.train(), backend="eager")
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    training = fs.sparsify(compiled, optimizer, "static", sparsity=0.8, steps=3)
    for _ in range(2):
        compiled(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    true = {n: p.clone() for n, p in model.state_dict().items()}
    compiled(inputs).square().mean().backward()
    assert not all(torch.equal(p, true[n]) for n, p in model.named_parameters()), "the weights are at the neighbour"
    save_dense(tmp_path / "dense.safetensors", compiled, training.masks)
    sparse = to_csr(compiled, training.masks)
    optimizer.zero_grad()
    saved = load_file(tmp_path / "dense.safetensors")
    assert {n for n in saved if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))} == dict(
        model.named_parameters()
    ).keys()
    assert all(torch.equal(saved[n], true[n]) for n, p in model.named_parameters())
    assert torch.equal(sparse.get_submodule("0").values, true["0.weight"][training.masks["0.weight"]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_survives_or_is_refused_in_a_line(dtype, tmp_path):
    model, masks, inputs = net("digitnet", dtype=dtype)
    wanted = masked(model, masks)(inputs)
    assert torch.equal(with_zeros(model, masks)(inputs), wanted)
    save_small(tmp_path / "small.safetensors", model, masks)
    small = load_small(tmp_path / "small.safetensors", NETS["digitnet"][0]().to(dtype))
    assert difference(small(inputs), wanted) < 0.02
    with pytest.raises(InputError, match=r"in torch\.\w*float16 on cpu: give model"):
        to_csr(model, masks)


def test_csr_is_loaded_in_the_type_of_the_model(tmp_path):
    model, masks, inputs = net("digitnet", dtype=torch.float64)
    save_csr(tmp_path / "csr.safetensors", to_csr(model, masks))
    found = load_csr(tmp_path / "csr.safetensors", NETS["digitnet"][0]())(inputs.float())
    assert found.dtype == torch.float32
    assert difference(found, masked(model, masks)(inputs).float()) < 1e-5


def test_csr_keeps_live_weights_alone():
    model, masks, _ = net("awkward")
    sparse = to_csr(model, masks)
    assert sparse.again is sparse.shared
    for name in ("stem", "depthwise", "grouped", "ring", "point", "shared"):
        assert len(sparse.get_submodule(name).values) == int(masks[f"{name}.weight"].sum())
    assert type(sparse.line) is nn.Conv1d


def test_a_depthwise_matrix_has_each_kernel_in_its_own_block():
    layer = nn.Conv2d(2, 4, (1, 3), groups=2, bias=False)
    weight, mask = layer.weight.detach(), torch.ones(4, 1, 1, 3, dtype=torch.bool)
    rows = to_csr(layer, {"weight": mask})
    found = rows.matrix().to_dense()
    wanted = torch.zeros(4, 6)
    wanted[:2, :3], wanted[2:, 3:] = weight[:2, 0, 0], weight[2:, 0, 0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("seed", range(30))
def test_csr_of_any_convolution(seed):
    pick = np.random.default_rng(seed)
    groups = int(pick.choice([1, 2, 4]))
    choose = lambda *of: int(pick.choice(of))  # noqa: E731
    layer = nn.Conv2d(
        *(4, 4 * choose(1, 2)),
        kernel_size=(choose(1, 2, 3), choose(1, 3)),
        stride=(choose(1, 2), choose(1, 3)),
        padding=(choose(0, 1), choose(0, 2)),
        dilation=(choose(1, 2), 1),
        groups=groups,
        bias=bool(choose(0, 1)),
        padding_mode=str(pick.choice(["zeros", "reflect", "replicate"])),
    )
    torch.manual_seed(seed)
    mask, inputs = torch.rand(layer.weight.shape) < 0.5, torch.randn(2, 4, 7, 8)
    mask.view(-1)[0] = True
    with torch.no_grad():
        assert difference(to_csr(layer, {"weight": mask})(inputs), masked(layer, {"weight": mask})(inputs)) < 1e-5


@every
@torch.no_grad()
def test_small_says_what_the_masked_model_says(name, tmp_path):
    model, masks, inputs = net(name, half=True, dtype=torch.float64)
    removed = save_small(tmp_path / "small.safetensors", model, masks, inputs)
    small = load_small(tmp_path / "small.safetensors", NETS[name][0]().double(), inputs)
    assert difference(small(inputs), masked(model, masks)(inputs)) < 1e-10
    assert removed == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
    kept = (
        "linear",
        "awkward",
        "transformer",
    )  # all channels are inputs, outputs, grouped or read by a layer without bias
    assert (removed > 0) == (name not in kept)


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "awkward",
        "transformer",
        "digitnet",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in NETS
            if n not in ("linear", "awkward", "transformer", "digitnet")
        ),
    ],
)
@torch.no_grad()
def test_onnx_says_what_the_masked_model_says(name, tmp_path):
    model, masks, inputs = net(name)
    save_onnx(tmp_path / "model.onnx", model, masks, inputs[:1])
    wanted = masked(model, masks)(inputs)  # float32 rounds to 6e-5 in the deepest nets
    assert difference(load_onnx(tmp_path / "model.onnx")(inputs), wanted) < 5e-4
    assert difference(load_onnx(tmp_path / "model.onnx")(inputs[:1]), wanted[:1]) < 5e-4
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_damaged_onnx_file_gets_one_line(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"hello, world")
    with pytest.raises(InputError, match="damaged") as caught:
        load_onnx(file)(torch.zeros(1, 8))
    assert "\n" not in str(caught.value)


def test_every_flipped_byte_and_truncation_of_an_onnx_file_is_found(tmp_path):
    """Most bytes are weights, which onnxruntime would compute with."""
    model, masks, inputs = net("linear")
    file = tmp_path / "model.onnx"
    save_onnx(file, model, masks, inputs)
    whole = file.read_bytes()
    assert len(whole) > 200
    for place in (*range(100), *range(100, len(whole), 37)):
        spoilt = bytearray(whole)
        spoilt[place] ^= 4
        for content in (spoilt, whole[:place]):
            file.write_bytes(content)
            with pytest.raises(InputError, match=re.escape(str(file))) as caught:
                load_onnx(file)
            assert "\n" not in str(caught.value)


def test_an_onnx_file_that_others_wrote_is_read(tmp_path):
    model, masks, inputs = net("linear")
    file = tmp_path / "model.onnx"
    save_onnx(file, model, masks, inputs)
    wanted = load_onnx(file)(inputs)
    import onnx

    read = onnx.load(file)
    assert [entry.key for entry in read.metadata_props][:1] == ["flatsparse.sha256"]
    del read.metadata_props[:]
    onnx.save(read, file)
    assert torch.equal(load_onnx(file)(inputs), wanted)


def test_onnx_refuses_other_inputs_in_a_line(tmp_path):
    model, masks, inputs = net("linear")
    save_onnx(tmp_path / "model.onnx", model, masks, inputs)
    with pytest.raises(InputError, match="does not take inputs") as caught:
        load_onnx(tmp_path / "model.onnx")(inputs[:, :3])
    assert "\n" not in str(caught.value)


def test_what_csr_cannot_read_is_said_in_a_line(tmp_path):
    model, masks, _ = net("linear")
    save_csr(tmp_path / "csr.safetensors", to_csr(model, masks))
    save_dense(tmp_path / "dense.safetensors", model, masks)
    cases = [
        ("csr", nn.Linear(8, 5), "not of this model"),
        ("csr", nn.Linear(3, 4), "not of this model"),
        ("csr", nn.Sequential(model), "not of this model"),
        ("dense", model, "not 'flatsparse-csr-1'"),
    ]
    save_file(model.state_dict(), tmp_path / "foreign.safetensors")
    for file, other, told in [*cases, ("foreign", model, "no checksum")]:
        with pytest.raises(InputError, match=told) as caught:
            load_csr(tmp_path / f"{file}.safetensors", other)
        assert "\n" not in str(caught.value)


def test_what_small_cannot_read_is_said_in_a_line(tmp_path):
    model, masks, inputs = net("digitnet", half=True)
    save_small(tmp_path / "small.safetensors", model, masks, inputs)
    save_dense(tmp_path / "dense.safetensors", model, masks)
    cases = [
        ("small", NETS["resnet20"][0](), "give both of the same run"),
        ("small", fs.models.digitnet(num_classes=7), "not of this model"),
        ("small", fs.models.digitnet(width=4), "cannot have"),
        ("dense", model, "not 'flatsparse-small-1'"),
    ]
    tensors, about = load_tensors(tmp_path / "small.safetensors")
    for number, widths in enumerate(["[[1]]", "3", "null", '{"0.weight": "4"}', "{"]):  # sealed, but by a stranger
        save_tensors(tmp_path / f"{number}.safetensors", tensors, {**about, "widths": widths})
        cases.append((str(number), fs.models.digitnet(), "widths"))
    for file, other, told in cases:
        with pytest.raises(InputError, match=told) as caught:
            load_small(tmp_path / f"{file}.safetensors", other)
        assert "\n" not in str(caught.value)


def test_a_layer_of_another_kind_is_refused(tmp_path):
    model, masks, _ = net("linear")
    save_csr(tmp_path / "csr.safetensors", to_csr(nn.Sequential(model), {"0.weight": masks["weight"]}))
    with pytest.raises(InputError, match="not of this model"):
        load_csr(tmp_path / "csr.safetensors", nn.Sequential(nn.ReLU()))


def test_indices_beyond_the_matrix_are_refused(tmp_path):
    model, masks, _ = net("linear")
    sparse = to_csr(model, masks)
    sparse.col_indices[-1] = 8
    save_csr(tmp_path / "csr.safetensors", sparse)  # with a checksum that fits
    with pytest.raises(InputError, match="not of this model"):
        load_csr(tmp_path / "csr.safetensors", model)


def test_only_masks_of_the_pattern_pass_for_2_of_4():
    model = nn.Sequential(nn.Linear(8, 4), nn.Conv2d(4, 4, 3))
    good = {"0.weight": NofM(2, 4).keep(torch.randn(4, 8)), "1.weight": NofM(2, 4).keep(torch.randn(4, 4, 3, 3))}
    bad = {**good, "0.weight": torch.ones(4, 8, dtype=torch.bool)}
    with pytest.raises(InputError, match=r"'0\.weight' does not keep 2 of each 4"):
        to_semi_structured(model, bad)
    with pytest.raises(InputError, match="no linear layer"):
        to_semi_structured(model, {"1.weight": good["1.weight"]})
    with pytest.raises(InputError, match="need an NVIDIA GPU"):
        to_semi_structured(model, good)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_2_of_4_says_what_the_masked_model_says():
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).cuda()
    masks = {n: NofM(2, 4).keep(p.detach()) for n, p in model.named_parameters() if p.ndim == 2}
    inputs = torch.randn(64, 128, device="cuda")
    with torch.no_grad():
        wanted = with_zeros(model, masks).half()(inputs.half())
        assert F.mse_loss(to_semi_structured(model, masks)(inputs.half()), wanted) < 1e-5
