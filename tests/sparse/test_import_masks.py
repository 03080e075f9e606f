"""Masks of models that others pruned, and training that keeps them."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import flatsparse as fs
from flatsparse.common.errors import InputError
from tests.helpers import batch, conv_net, mlp, same, saved, sgd, train_steps


def pruned(model, amount=0.6):
    """Every matrix loses its smallest entries for good."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            prune.l1_unstructured(module, "weight", amount=amount)
            prune.remove(module, "weight")
    return model


def zeros(model):
    return {n: p.detach() != 0 for n, p in model.named_parameters() if p.ndim >= 2}


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def shards(model, folder):
    """A checkpoint as Hugging Face lays it out in two parts."""
    folder.mkdir()
    state = list(model.state_dict().items())
    parts = {"model-1.safetensors": dict(state[:1]), "model-2.safetensors": dict(state[1:])}
    for name, tensors in parts.items():
        save_file(tensors, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, tensors in parts.items() for key in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def saved_by_torch(model, file):
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, file)
    return file


def saved_with_more(model, file):
    torch.save({"epoch": 3, "model_state_dict": model.state_dict()}, file)
    return file


def one_part(model, folder):
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return folder


def our_masks(model, folder):
    folder.mkdir()
    fs.save_masks(folder / "masks.safetensors", zeros(model))
    return folder


SOURCES = {
    "model": lambda model, path: model,
    "state dict": lambda model, path: model.state_dict(),
    "folder in one part": one_part,
    "folder in parts": shards,
    "file of one part": lambda model, path: one_part(model, path) / "model.safetensors",
    "torch.save": saved_by_torch,
    "torch.save with more": saved_with_more,
    "run's folder": our_masks,
    "mask file": lambda model, path: our_masks(model, path) / "masks.safetensors",
}


@pytest.mark.parametrize("make", [mlp, conv_net])
@pytest.mark.parametrize("source", SOURCES)
def test_zeros_become_masks_wherever_they_are(make, source, tmp_path):
    model = pruned(make())
    assert equal(fs.masks_from(SOURCES[source](model, tmp_path / "it")), zeros(model))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.state_dict()], ids=["model", "state dict"])
def test_torchs_own_masks_count_not_zeros(wrap):
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0  # live, and zero
    mask = torch.ones(16, 6)
    mask[:, 1] = 0
    prune.custom_from_mask(model[0], "weight", mask)
    prune.custom_from_mask(model[3], "bias", torch.tensor([1.0, 0.0, 1.0]))  # no matrix
    with pytest.warns(UserWarning, match=r"masks of biases and norms are left out.*: 3\.bias$"):
        masks = fs.masks_from(wrap(model))
    assert equal(masks, {"0.weight": mask.bool()})


def test_a_dense_layer_stays_dense_and_nothing_pruned_is_said():
    model = mlp()
    with pytest.raises(InputError, match="nothing is pruned in this Sequential"):
        fs.masks_from(model)
    prune.remove(prune.l1_unstructured(model[0], "weight", amount=5), "weight")
    assert list(fs.masks_from(model)) == ["0.weight"]


def test_the_zeros_of_a_models_buffers_are_its_own():
    model = pruned(mlp())
    model.register_buffer("positions", torch.zeros(3, 4))
    assert list(fs.masks_from(model)) == ["0.weight", "3.weight"]


def tied(tokens, padding):
    """An embedding, whose padding row is zero, and an output layer of the same matrix."""
    model = nn.Sequential(
        nn.Embedding(tokens, 4, padding_idx=padding), nn.Linear(4, 4), nn.Linear(4, tokens, bias=False)
    )
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("padding", [0, 3])
def test_the_zeros_of_padding_tokens_are_their_own(padding):
    model = tied(6, padding)
    with pytest.raises(InputError, match="nothing is pruned"):
        fs.masks_from(model)
    model[0].weight.data[1, 2] = 0
    masks = fs.masks_from(model)
    assert list(masks) == ["0.weight", "2.weight"]
    assert all((~mask).nonzero().tolist() == [[1, 2]] for mask in masks.values())
    prune.identity(model[1], "weight")
    assert fs.masks_from(model)["1.weight"].all()  # a mask of torch's stays, whatever it masks


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"net": state, "acc": 93.1, "epoch": 3},
        lambda state: {"weights": state, "mean": torch.zeros(3)},
        lambda state: {"epoch": 3, "module": {"ema": state}, "optimizer": {"state": {"0.weight": {"m": torch.eye(3)}}}},
        lambda state: {"state_dict": state, "state_dict_ema": state, "classes": torch.eye(3)},
        lambda state: {"model": state, "ema": state},
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_a_state_dict_is_found_under_any_key(nest, saved, tmp_path):
    model = pruned(mlp())
    source = nest(model.state_dict())
    if saved:
        torch.save(source, tmp_path / "it.pt")
        source = tmp_path / "it.pt"
    assert equal(fs.masks_from(source), zeros(model))


@pytest.mark.parametrize(
    ("nest", "told"),
    [
        (lambda state: {"net": state, "ema": state}, r"holds several state dicts, 'net', 'ema': give one"),
        (lambda state: {"epoch": 3, "args": {"lr": 0.1}}, r"holds no state dict; its keys are 'epoch', 'args': give"),
    ],
)
def test_a_checkpoint_of_several_state_dicts_or_none_gets_one_line(nest, told):
    with pytest.raises(InputError, match=told):
        fs.masks_from(nest(pruned(mlp()).state_dict()))


def test_a_checkpoint_that_holds_itself_comes_to_an_end():
    source = {"net": pruned(mlp()).state_dict()}
    source["again"] = source
    with pytest.raises(InputError, match="several state dicts, 'net', 'again'"):
        fs.masks_from(source)


@pytest.mark.parametrize("front", ["net.", "model.module.", "module._orig_mod."])
def test_masks_from_a_checkpoint_with_names_of_another_module_fit(front):
    model = pruned(mlp())
    masks = fs.masks_from({"state_dict": {front + name: tensor for name, tensor in model.state_dict().items()}})
    assert equal(fs.sparsify(model, sgd(model.parameters()), "static", masks=masks, steps=1).masks, zeros(model))
    masks["other.weight"] = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(InputError, match="masks do not fit the model"):
        fs.sparsify(model, sgd(model.parameters()), "static", masks=masks, steps=1)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.module, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.module(x))


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_a_module_of_the_models_own_is_told_from_a_wrapper(wrap):
    model = Head()
    with torch.no_grad():
        model.module.weight[:, :3] = 0
    outer = wrap(model)
    masks = fs.masks_from(outer.state_dict())
    assert equal(masks, {"module.weight": model.module.weight != 0})
    assert fs.sparsify(outer, sgd(outer.parameters()), "static", masks=masks, steps=1).sparsity == 0.5


def test_masks_may_have_the_names_of_the_wrapped_model():
    model = pruned(mlp())
    masks = {f"module.{name}": mask for name, mask in zeros(model).items()}
    training = fs.sparsify(nn.DataParallel(model), sgd(model.parameters()), "static", masks=masks, steps=1)
    assert equal(training.masks, zeros(model))


def test_a_checkpoints_buffers_with_zeros_are_not_masked():
    model = pruned(mlp())
    model.register_buffer("positions", torch.eye(4))
    masks = fs.masks_from(model.state_dict())
    assert list(fs.sparsify(model, sgd(model.parameters()), "static", masks=masks, steps=1).masks) == [
        "0.weight",
        "3.weight",
    ]


@pytest.mark.parametrize("layout", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_tensors_are_read(layout):
    assert equal(fs.masks_from({"a.weight": layout(torch.eye(3))}), {"a.weight": torch.eye(3).bool()})


@pytest.mark.parametrize("source", [None, 3, {1: torch.eye(3)}, {"a.weight": torch.empty(3, 3, device="meta")}])
def test_what_holds_no_weights_gets_one_line(source):
    with pytest.raises(InputError, match=r"give|load"):
        fs.masks_from(source)


def test_a_mask_of_a_weight_that_is_not_trained_must_be_true_already():
    model = pruned(mlp())
    model[0].requires_grad_(False)
    masks = fs.masks_from(model)
    assert list(fs.sparsify(model, sgd(model[3].parameters()), "static", masks=masks, steps=1).masks) == ["3.weight"]
    nn.init.ones_(model[0].weight)
    with pytest.raises(InputError, match=r"does not train '0\.weight'"):
        fs.sparsify(model, sgd(model[3].parameters()), "static", masks=masks, steps=1)


def test_a_matrix_of_zeros_is_warned_of():
    model = pruned(mlp())
    nn.init.zeros_(model[3].weight)
    with pytest.warns(UserWarning, match=r"'3.weight' is zero throughout"):
        assert not fs.masks_from(model)["3.weight"].any()


@pytest.mark.parametrize("base", ["sgd", "s2sam"])
@pytest.mark.parametrize("held", [False, True], ids=["removed", "held by torch"])
def test_a_pruned_model_stays_sparse_through_training(base, held):
    model = mlp()
    for layer in (model[0], model[3]):
        prune.l1_unstructured(layer, "weight", amount=0.6)
        if not held:
            prune.remove(layer, "weight")
    masks = fs.masks_from(model)
    before = [p.detach().clone() for p in model.parameters()]
    outputs = model.eval()(batch()[0])
    optimizer = sgd(model.parameters())
    optimizer = fs.S2SAM(optimizer, rho=0.05) if base == "s2sam" else optimizer
    training = fs.sparsify(model, optimizer, "static", masks=masks, steps=5)
    assert torch.equal(model(batch()[0]), outputs), "keeping what is pruned changes no output"
    train_steps(model.train(), optimizer, 5)
    assert training.sparsity == 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for layer, name in ((model[0], "0.weight"), (model[3], "3.weight")):
        if held:
            prune.remove(layer, "weight")
        assert equal({"w": layer.weight != 0}, {"w": masks[name]})


def test_plain_masked_training_is_the_same():
    """The plain form: zero gradients before the step and weights after it."""
    ours, plain = pruned(mlp()), pruned(mlp())
    masks = fs.masks_from(ours)
    first, second = sgd(ours.parameters()), sgd(plain.parameters())
    fs.sparsify(ours, first, "static", masks=masks, steps=4)
    named = dict(plain.named_parameters())
    for step in range(4):
        train_steps(ours, first, 1, step)
        inputs, targets = batch(step)
        nn.functional.cross_entropy(plain(inputs), targets).backward()
        for name, mask in masks.items():
            named[name].grad *= mask
        second.step()
        with torch.no_grad():
            for name, mask in masks.items():
                named[name] *= mask
        second.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_it_resumes_bit_for_bit():
    def start():
        model = pruned(mlp())
        optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.05)
        return model, optimizer, fs.sparsify(model, optimizer, "static", masks=fs.masks_from(model), steps=6)

    parts, again = start(), start()
    train_steps(parts[0], parts[1], 3)
    for mine, theirs in zip(again, parts, strict=True):
        mine.load_state_dict(saved(theirs.state_dict()))
    for model, optimizer, _ in (parts, again):
        train_steps(model, optimizer, 3, start=3)
    assert same(saved(parts[0].state_dict()), saved(again[0].state_dict()))


def test_a_method_may_move_given_masks():
    model = pruned(mlp())
    masks = fs.masks_from(model)
    optimizer = sgd(model.parameters())
    training = fs.sparsify(model, optimizer, "rigl", masks=masks, steps=20, every=2)
    assert equal(training.masks, masks)
    train_steps(model, optimizer, 10)
    assert not equal(training.masks, masks)
    assert [int(m.sum()) for m in training.masks.values()] == [int(m.sum()) for m in masks.values()]


def test_a_tied_weight_goes_by_either_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    model, mask = Tied(), torch.rand(4, 4) < 0.5
    mask[0, 0] = True
    training = fs.sparsify(model, sgd(model.parameters()), "static", masks={"b.weight": mask}, steps=1)
    assert equal(training.masks, {"a.weight": mask})


def choose(**changed):
    model = pruned(mlp())
    chosen = {"method": "static", "masks": fs.masks_from(model), "steps": 4, **changed}
    return model, lambda: fs.sparsify(model, sgd(model.parameters()), **chosen)


MASK = torch.ones(16, 6, dtype=torch.bool)
REFUSED = {
    "name": ({"masks": {"0.wieght": MASK}}, "no weight '0.wieght'.*0.weight"),
    "shape": ({"masks": {"0.weight": MASK.T}}, r"\(6, 16\).*shape \(16, 6\)"),
    "kind": ({"masks": {"0.weight": MASK.float()}}, "float32.*bool"),
    "nothing live": ({"masks": {"0.weight": ~MASK}}, "no weight active"),
    "sparsity too": ({"sparsity": 0.5}, "leave out sparsity"),
    "layers too": ({"include": ["0*"]}, "leave out"),
    "denser start": ({"method": "gmp"}, "'gmp' starts denser"),
    "rounds": ({"method": "lth", "masks": {"0.weight": MASK}}, "'lth'"),
    "neither": ({"masks": None}, "neither sparsity= nor masks="),
    "pattern": (
        {"method": fs.methods.Static(pattern=(1, 2)), "masks": {"0.weight": MASK & (torch.arange(6) < 3)}},
        "1:2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_masks_that_cannot_be_kept_are_refused_in_a_line(case):
    changed, told = REFUSED[case]
    model, call = choose(**changed)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=told) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert equal(before, model.state_dict())


def test_masks_that_torch_holds_do_not_move():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    with pytest.raises(InputError, match=r"prune.remove"):
        fs.sparsify(model, sgd(model.parameters()), "rigl", masks=fs.masks_from(model), steps=20)


def spoilt(model, path):
    folder = one_part(model, path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    return file


def missing_part(model, path):
    (shards(model, path) / "model-2.safetensors").unlink()
    return path


def outside(model, path):
    index = shards(model, path) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    return path


def written(content, name="it.pt"):
    def write(model, path):
        path.mkdir()
        (path / name).write_bytes(content)
        return path / name

    return write


def whole_model(model, path):
    torch.save(model, path)
    return path


DAMAGED = {
    "cut off": (spoilt, "damaged"),
    "missing part": (missing_part, r"no file '.*model-2"),
    "index outside": (outside, "outside its folder"),
    "index of nothing": (written(b"[]", "model.safetensors.index.json"), None),
    "text": (written(b"hello, world"), "cannot be read|can be read"),
    "empty": (written(b""), "can be read"),
    "a pickled model": (whole_model, "state dict"),
    "absent": (lambda model, path: path / "nowhere.pt", "cannot read"),
    "empty folder": (lambda model, path: path.mkdir() or path, "neither"),
    "text as safetensors": (written(b"hello, world, hello", "it.safetensors"), "damaged"),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of the odd things that it finds
@pytest.mark.filterwarnings("ignore")  # torch's, of the odd things that it finds
@pytest.mark.parametrize("zipped", [True, False])
def test_wherever_a_file_of_torch_is_spoilt_it_gets_one_line_or_is_read(zipped, tmp_path):
    torch.save(pruned(mlp()).state_dict(), tmp_path / "it.pt", _use_new_zipfile_serialization=zipped)
    whole, source, told = (tmp_path / "it.pt").read_bytes(), random.Random(0), []
    for _ in range(150):
        spoilt = bytearray(whole)
        for _ in range(30):
            spoilt[source.randrange(len(whole))] = source.randrange(256)
        (tmp_path / "it.pt").write_bytes(spoilt[: source.choice([len(whole), source.randrange(len(whole))])])
        try:
            fs.masks_from(tmp_path / "it.pt")
        except InputError as problem:
            told.append(str(problem))
    assert len(told) > 75
    assert not any("\n" in line for line in told)


@pytest.mark.parametrize(("kind", "size"), [("F4", 8), ("F6_E2M3", 12)])
@pytest.mark.parametrize("sealed", [True, False])
def test_numbers_of_a_type_that_torch_cannot_read_get_one_line(kind, size, sealed, tmp_path):
    about = {"__metadata__": {"format": "pt", "sha256": "0"}} if sealed else {}
    header = json.dumps({**about, "a.weight": {"dtype": kind, "shape": [4, 4], "data_offsets": [0, size]}}).encode()
    (tmp_path / "it.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(InputError, match=r"another type|not ours"):
        fs.masks_from(tmp_path / "it.safetensors")


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_or_foreign_file_gets_one_line(case, tmp_path):
    make, told = DAMAGED[case]
    source = make(pruned(mlp()), tmp_path / "it")
    if told is None:
        source, told = source.parent, "no weight_map"
    with pytest.raises(InputError, match=told) as caught:
        fs.masks_from(source)
    assert "\n" not in str(caught.value)
